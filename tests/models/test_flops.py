"""The model's own count of its arithmetic against XLA's count of the program, and against pairs counted one by one."""

from dataclasses import replace

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
from jaxfusion.models.flops import count_flops
from jaxfusion.models.vision import make_vision
from jaxfusion.models.vlm import build, forward, init
from jaxfusion.training.losses import loss
from tests.references import random_packing, visibility

# XLA counts norms, activations and softmax too, never less than the products that we count.
MORE = 1.06

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
    assert "stablehlo.while" not in lowered.as_text()  # of a loop XLA counts one turn
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
    ours = 3 * flops.rooms["vision"] - flops.input_layer
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
    assert dense - needed == 2 * 2 * 2 * 5 * (3 * 4 * 16 * 16 - seen)
