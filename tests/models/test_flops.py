"""The model's own count of its arithmetic against XLA's count of the program, and against pairs counted one by one."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfusion.batch import Batch
from jaxfusion.config.model import (
    AddFusionConfig,
    BiLSTMEncoderConfig,
    CrossAttentionFusionConfig,
    FeaturesConfig,
    LinearProjectorConfig,
    LoraConfig,
    MappingProjectorConfig,
    MLPProjectorConfig,
    ModelConfig,
    PerceiverProjectorConfig,
    PixelShuffleProjectorConfig,
    PooledClassifierConfig,
    PoolProjectorConfig,
    ResNetConfig,
    TextEmbeddingConfig,
    TokenClassifierConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
    VGGConfig,
    ViTConfig,
)
from jaxfusion.config.run import TrainConfig
from jaxfusion.models.flops import Flops, count_flops
from jaxfusion.models.vision import make_vision
from jaxfusion.models.vlm import build, forward, init
from jaxfusion.training import cross_entropy
from jaxfusion.training.losses import loss
from jaxfusion.training.optimizer import make_optimizer
from jaxfusion.training.state import create_state
from jaxfusion.training.step import train_step
from jaxfusion.training.trainable import trained_paths
from tests.references import random_packing, visibility

# XLA counts norms, activations and softmax too, never less than the products that we count.
MORE = 1.06


@pytest.fixture(autouse=True)
def one_chunk(monkeypatch):
    """The loss of all positions at once: of a loop XLA counts one turn."""
    monkeypatch.setattr(cross_entropy, "CHUNKS", 1)


VIT = ViTConfig(
    image_size=32,
    patch_size=8,
    width=128,
    num_layers=1,
    num_heads=2,
    mlp_width=512,
    class_token=False,
    scan_layers=False,
)
DECODER = TransformerDecoderConfig(num_layers=1, num_heads=2, scan_layers=False)
ENCODER = TransformerEncoderConfig(num_layers=1, num_heads=2, scan_layers=False)
MODEL = ModelConfig(width=256, text_embedding=TextEmbeddingConfig(vocab_size=512), vision=VIT, decoder=DECODER)
GATED = replace(
    DECODER,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    qkv_bias=False,
    out_bias=False,
    mlp="swiglu",
    mlp_bias=False,
    mlp_width=640,
    norm="rms",
)

MODELS = {
    "pixel shuffle, grouped queries": replace(MODEL, projector=PixelShuffleProjectorConfig(), decoder=GATED),
    "class token, mlp, cross-attention": replace(
        MODEL,
        vision=replace(VIT, class_token=True),
        projector=MLPProjectorConfig(hidden_width=320),
        fusion=CrossAttentionFusionConfig(num_heads=2),
    ),
    "a part of the vision's layers, gated": replace(
        MODEL,
        vision=replace(VIT, num_layers=3, feature_layer=-2, mlp="swiglu", class_token=True, keep_class_token=False),
    ),
    "pool": replace(MODEL, projector=PoolProjectorConfig()),
    "a pooled prefix": replace(MODEL, projector=LinearProjectorConfig(pool="mean", prefix_length=3)),
    "perceiver, encoder, token classifier": replace(
        MODEL,
        projector=PerceiverProjectorConfig(num_queries=6, num_layers=2, num_heads=2),
        encoder=ENCODER,
        decoder=TokenClassifierConfig(),
    ),
    "added features, pooled classifier": replace(
        MODEL,
        vision=FeaturesConfig(num_tokens=4, feature_width=384),
        projector=LinearProjectorConfig(pool="mean"),
        fusion=AddFusionConfig(),
        encoder=ENCODER,
        decoder=PooledClassifierConfig(num_classes=40),
    ),
}
LOOPS = {  # that cannot be unrolled
    "bilstm": replace(MODEL, vision=None, encoder=BiLSTMEncoderConfig(num_layers=2), decoder=TokenClassifierConfig()),
    "mapping network": replace(
        MODEL,
        projector=MappingProjectorConfig(prefix_length=5, num_layers=1, num_heads=2),
        decoder=TokenClassifierConfig(),
    ),
}
NETWORKS = {
    "vgg": VGGConfig(image_size=36, stage_depths=(1, 2), stage_widths=(32, 48)),
    "resnet": ResNetConfig(image_size=45, stage_depths=(1, 2), width=32),
    "bottleneck resnet": ResNetConfig(
        image_size=33, stage_depths=(2, 1), width=32, stem="small", block="bottleneck", norm="group"
    ),
}


def make_batch(config: ModelConfig, length: int = 24) -> Batch:
    """Two rows of two images each."""
    match config.vision:
        case None:
            images = None
        case FeaturesConfig(num_tokens=num_tokens, feature_width=width):
            images = np.zeros((2, 2, num_tokens, width), np.float32)
        case vision:
            images = np.zeros((2, 2, vision.image_size, vision.image_size, 3), np.uint8)
    return Batch.from_tokens(np.zeros((2, length), np.int32), images)


def lower(function, config: ModelConfig, batch: Batch):
    model = build(config)
    params = jax.eval_shape(lambda: init(model, jax.random.key(0)))
    return jax.jit(lambda params, batch: function(model, params, batch)).lower(params, batch)


@pytest.mark.parametrize("name", MODELS)
def test_training_counts_what_xla_counts(name):
    config = MODELS[name]
    batch = make_batch(config)
    lowered, ours = lower(jax.grad(loss, argnums=1), config, batch), count_flops(config, batch, "dense").training
    assert "stablehlo.while" not in lowered.as_text()
    assert ours <= lowered.cost_analysis()["flops"] <= MORE * ours


@pytest.mark.parametrize("name", LOOPS)
def test_loops_of_one_turn_count_what_xla_counts(name):
    config = LOOPS[name]
    batch = make_batch(config, length=1)
    ours = count_flops(config, batch, "dense").forward
    assert ours <= lower(forward, config, batch).cost_analysis()["flops"] <= MORE * ours


@pytest.mark.parametrize("name", NETWORKS)
def test_convolutions_count_what_xla_counts(name):
    config = NETWORKS[name]
    network, images = make_vision(config, jnp.float32), np.zeros((1, 2, *[config.image_size] * 2, 3), np.uint8)
    params = jax.eval_shape(network.init, jax.random.key(0), images)
    gradient = jax.jit(jax.value_and_grad(lambda params: jnp.sum(network.apply(params, images) ** 2)))
    flops = count_flops(replace(MODEL, vision=config), Batch.from_tokens(np.zeros((1, 9), np.int32), images))
    ours = flops.rooms["vision"] + flops.backward["vision"]
    assert ours <= gradient.lower(params).cost_analysis()["flops"] <= MORE * ours


@pytest.mark.parametrize("rule", ["causal", "prefix-lm", "bidirectional"])
@pytest.mark.parametrize("windows", [(0, 0, 0), (3, 3, 3), (3, 0, 5)])
def test_needed_attention_is_the_pairs_that_see_each_other(rule, windows):
    segment_ids, positions, prompt_mask = random_packing(np.random.default_rng(0), 4, 16)
    batch = Batch.from_tokens(np.zeros((4, 16), np.int32)).replace(
        segment_ids=jnp.asarray(segment_ids), positions=jnp.asarray(positions), prompt_mask=jnp.asarray(prompt_mask)
    )
    layers = dict(num_layers=3, num_heads=2, head_dim=5, windows=windows)
    text = replace(MODEL, vision=None)
    if rule == "bidirectional":
        room, config = (
            "encoder",
            replace(text, encoder=TransformerEncoderConfig(**layers), decoder=TokenClassifierConfig()),
        )
    else:
        decoder = TransformerDecoderConfig(**layers, prefix_lm=rule == "prefix-lm")
        room, config = "decoder", replace(text, decoder=decoder)
    needed, dense = (count_flops(config, batch.replace(packed=True), kind).rooms[room] for kind in ("needed", "dense"))
    seen = sum(visibility(segment_ids, rule, prompt_mask, window or None).sum() for window in windows)
    of_padding = np.sum(segment_ids == 0) * 3 * 2 * (4 * 256 * 2 * 5 + 2 * 256 * 4 * 256)
    assert dense - needed == pytest.approx(2 * 2 * 2 * 5 * (3 * 4 * 16 * 16 - seen) + of_padding, rel=1e-6)


def test_what_is_needed_is_what_the_real_part_of_a_batch_needs_alone():
    """A batch without padding, and the same with padding, empty image slots and empty rows around it."""
    rng = np.random.default_rng(0)
    visual = MODEL.tokens_per_image
    tokens, index = np.zeros((2, visual + 6), np.int32), np.tile(np.r_[:visual, [-1] * 6], (2, 1))
    images = rng.integers(0, 256, (2, 1, 32, 32, 3)).astype(np.uint8)
    full = Batch.from_tokens(tokens, images).replace(visual_index=index, loss_weights=np.ones(tokens.shape, np.float32))

    def padded(leaf: np.ndarray) -> np.ndarray:
        leaf = np.asarray(leaf)
        of_images = leaf.ndim == 5 or leaf.shape[1] == 1
        return np.pad(leaf, [(0, 1), (0, 1 if of_images else 5)] + [(0, 0)] * (leaf.ndim - 2))

    roomy = jax.tree.map(padded, full)
    assert roomy.images.shape[:2] == roomy.image_segment_ids.shape == (3, 2)
    for config in (MODEL, replace(MODEL, fusion=CrossAttentionFusionConfig(num_heads=2), encoder=ENCODER)):
        assert count_flops(config, roomy) == count_flops(config, full)
        assert count_flops(config, roomy).training < count_flops(config, full, "dense").training
        assert count_flops(config, roomy, "dense").training > 2 * count_flops(config, full).training


# What trains of a model whose products are large beside everything else, and whether it may be read off a compilation.
LARGE = replace(
    MODEL,
    vision=replace(VIT, image_size=64),
    projector=MLPProjectorConfig(),
    decoder=replace(GATED, num_layers=1, head_dim=64, mlp_width=512),
)
ADAPTED = replace(LARGE, lora=(LoraConfig(layers="decoder/layers/*/[qd]*", rank=8),))
CONVOLUTIONS = replace(
    LARGE, vision=ResNetConfig(image_size=48, stage_depths=(1, 1, 1), width=32, stem="small", norm="group")
)
WITHIN = 1.05


def step_and_count(config: ModelConfig, trainable: tuple[str, ...]) -> tuple[jax.stages.Lowered, Flops]:
    """The training step, and what the model needs for it."""
    model, optimizer = build(config), make_optimizer(TrainConfig())
    images = np.zeros((4, 1, *[config.vision.image_size] * 2, 3), np.uint8)
    batch = Batch.from_tokens(np.zeros((4, 128), np.int32), images)
    state = jax.eval_shape(lambda: create_state(model, optimizer, jax.random.key(0), trainable))
    step = jax.jit(partial(train_step, model, optimizer)).lower(state, batch)
    return step, count_flops(config, batch, "dense", trainable=trained_paths(state.params, trainable))


@pytest.mark.parametrize("trainable", [("*",), ("projector/*",)])
def test_a_compiled_step_does_what_the_model_needs_and_no_more(trainable):
    step, flops = step_and_count(LARGE, trainable)
    assert flops.training <= step.compile().cost_analysis()["flops"] <= WITHIN * flops.training
    if trainable == ("projector/*",):  # frozen towers: forward, and back through activations down to the projector
        pairs = 2 * 2 * 4 * 128 * 128 * 4 * 64  # attention's two products, whose factors are all activations
        assert flops.backward["decoder"] == flops.rooms["decoder"] + pairs
        assert flops.backward["output"] == flops.rooms["output"] and "vision" not in flops.backward


@pytest.mark.parametrize(
    ("config", "trainable"),
    [
        (ADAPTED, ("*/lora_?",)),
        (LARGE, ("decoder/layers/mlp/*", "text_embedding/*")),
        (LARGE, ("vision/final_norm/*",)),
        (LARGE, ("decoder/layers/attention/value/*",)),
        (CONVOLUTIONS, ("vision/stage2*", "projector/*")),
        (replace(LARGE, fusion=CrossAttentionFusionConfig(num_heads=4)), ("fusion/*", "projector/*")),
    ],
)
def test_what_is_frozen_is_left_out_of_the_step_as_of_the_count(config, trainable):
    step, flops = step_and_count(config, trainable)
    assert flops.training <= step.cost_analysis()["flops"] <= WITHIN * flops.training
