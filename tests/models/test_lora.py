"""Adapters against the weights that they stand for, in every kind of room."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import jaxfusion
from jaxfusion.batch import Batch
from jaxfusion.config.model import (
    CrossAttentionFusionConfig,
    LoraConfig,
    MLPProjectorConfig,
    ModelConfig,
    PerceiverProjectorConfig,
    TextEmbeddingConfig,
    TransformerDecoderConfig,
    TransformerEncoderConfig,
    ViTConfig,
)
from jaxfusion.errors import UserError
from jaxfusion.models.lora import is_adapter, merge
from jaxfusion.models.vlm import complete

VOCAB, IMAGE = 11, 10
FORWARD = jax.jit(jaxfusion.forward, static_argnums=0)
EVERYWHERE = (LoraConfig(layers="*", rank=3, alpha=5.0),)
LAYERS = dict(num_layers=2, num_heads=4)
BASE = ModelConfig(
    width=16,
    text_embedding=TextEmbeddingConfig(vocab_size=VOCAB),
    vision=ViTConfig(image_size=8, patch_size=4, width=12, num_layers=2, num_heads=2, mlp_width=20),
    projector=MLPProjectorConfig(),
    decoder=TransformerDecoderConfig(**LAYERS, num_kv_heads=2, mlp="swiglu", mlp_width=20),
    lora=EVERYWHERE,
)
CASES = {
    "placed": BASE,
    "unrolled": replace(BASE, decoder=replace(BASE.decoder, scan_layers=False)),
    "as many layers as the rank": replace(BASE, decoder=replace(BASE.decoder, num_layers=3)),
    "an encoder before": replace(BASE, encoder=TransformerEncoderConfig(**LAYERS)),
    "cross-attention, perceiver": replace(
        BASE,
        fusion=CrossAttentionFusionConfig(num_heads=2),
        projector=PerceiverProjectorConfig(num_layers=2, num_heads=2, num_queries=4),
    ),
}


def make_batch() -> Batch:
    rng = np.random.default_rng(0)
    tokens = np.concatenate([np.full((3, 4), IMAGE), rng.integers(0, IMAGE, (3, 5))], axis=1)
    return Batch.from_tokens(tokens, rng.integers(0, 255, (3, 1, 8, 8, 3)).astype(np.uint8), IMAGE)


def make(config: ModelConfig, deviation: float = 0.3):
    """A model and parameters without the zeros that hide mistakes; NumPy's numbers, for XLA compiles its own slowly."""
    model, rng = jaxfusion.build(config), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: jaxfusion.init(model, key), jax.random.key(0))
    return model, jax.tree.map(lambda leaf: jnp.float32(deviation * rng.standard_normal(leaf.shape)), shapes)


def adapters(params) -> dict[str, jax.Array]:
    leaves = traverse_util.flatten_dict(params, sep="/")
    return {path: leaf for path, leaf in leaves.items() if is_adapter(path)}


def distance(ours, theirs) -> float:
    return float(jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs))


def plain(model):
    return replace(model, config=replace(model.config, lora=()))


@pytest.mark.parametrize("case", CASES)
def test_adapters_equal_the_merged_weights(case):
    model, params = make(CASES[case])
    merged = merge(params, model.config.lora)
    assert not adapters(merged)
    ours = FORWARD(model, params, make_batch())
    assert distance(ours, FORWARD(plain(model), merged, make_batch())) < 1e-5
    without = {path: leaf for path, leaf in traverse_util.flatten_dict(params, sep="/").items() if not is_adapter(path)}
    base = FORWARD(plain(model), traverse_util.unflatten_dict(without, sep="/"), make_batch())
    assert distance(ours, base) > 1e-2  # they do something


def test_in_bfloat16_too():
    model, params = make(replace(BASE, dtype="bfloat16"), deviation=0.1)
    ours = FORWARD(model, params, make_batch())
    assert distance(ours, FORWARD(plain(model), merge(params, model.config.lora), make_batch())) < 2e-2


def test_new_adapters_change_nothing():
    model, params = make(replace(BASE, lora=()))
    model = replace(model, config=BASE)
    completed = complete(model, params, jax.random.key(1))
    np.testing.assert_array_equal(FORWARD(model, completed, make_batch()), FORWARD(plain(model), params, make_batch()))
    jax.tree.map(np.testing.assert_array_equal, merge(completed, model.config.lora), params)
    a = completed["decoder"]["layers"]["mlp"]["down"]["lora_a"]
    assert a.shape == (model.config.decoder.num_layers, 20, 3)
    bound = 1 / np.sqrt(20)
    assert 0.8 * bound < np.abs(a).max() <= bound
    assert not np.array_equal(a[0], a[1])


def test_every_linear_layer_can_have_one():
    model = jaxfusion.build(CASES["cross-attention, perceiver"])
    leaves = traverse_util.flatten_dict(jax.eval_shape(lambda r: jaxfusion.init(model, r), jax.random.key(0)), sep="/")
    kernels = {path.removesuffix("/kernel") for path in leaves if path.endswith("/kernel")}
    assert {path.removesuffix("/lora_a") for path in leaves if path.endswith("/lora_a")} == kernels
    assert {path.removesuffix("/lora_b") for path in leaves if path.endswith("/lora_b")} == kernels
    assert {path.split("/")[0] for path in kernels} == {"vision", "projector", "fusion", "decoder"}


def test_the_first_glob_that_fits_counts():
    globs = (
        LoraConfig(layers="decoder/layers/attention/[qv]*", rank=2, alpha=1.0),
        LoraConfig(layers="decoder/*", rank=4, alpha=8.0),
    )
    model, params = make(replace(BASE, lora=globs))
    ranks = {path: leaf.shape[-1] for path, leaf in adapters(params).items() if path.endswith("lora_a")}
    layers = "decoder/layers"
    assert ranks == {
        f"{layers}/attention/query/lora_a": 2,
        f"{layers}/attention/value/lora_a": 2,
        f"{layers}/attention/key/lora_a": 4,
        f"{layers}/attention/out/lora_a": 4,
        **{f"{layers}/mlp/{name}/lora_a": 4 for name in ("gate", "up", "down")},
    }
    ours = FORWARD(model, params, make_batch())
    assert distance(ours, FORWARD(plain(model), merge(params, globs), make_batch())) < 1e-5


def test_greedy_answers_are_those_of_the_merged_weights():
    model, params = make(BASE)
    batch = make_batch()
    ours = jaxfusion.generate_tokens(model, params, batch, max_new_tokens=6)
    theirs = jaxfusion.generate_tokens(plain(model), merge(params, model.config.lora), batch, max_new_tokens=6)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            (LoraConfig(layers="decoder/layers/mpl/*"),),
            r"config\.model\.lora: no linear layer fits 'decoder/layers/mpl/",
        ),
        ((LoraConfig(layers="text_embedding*"),), "no linear layer fits 'text_embedding"),
        ((*EVERYWHERE, LoraConfig(layers="vision/*")), r"an earlier glob fits all layers of 'vision/\*'; put it first"),
        ((LoraConfig(rank=0),), r"config\.model\.lora\[0\]\.rank: 0 is too few"),
    ],
)
def test_what_cannot_be_is_refused(lora, message):
    with pytest.raises(UserError, match=message):
        make(replace(BASE, lora=lora))
