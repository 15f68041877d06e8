"""Rematerialised layers: the same gradients from fewer residuals, and nothing computed again that nobody needs."""

from dataclasses import replace

import jax
import numpy as np

from jaxfusion.batch import Batch
from jaxfusion.config.model import (
    CrossAttentionFusionConfig,
    FeaturesConfig,
    LinearProjectorConfig,
    ModelConfig,
    TextEmbeddingConfig,
    TransformerDecoderConfig,
    ViTConfig,
)
from jaxfusion.models.flops import count_flops
from jaxfusion.models.remat import rematerialised
from jaxfusion.models.vlm import build, init
from jaxfusion.training.losses import loss
from jaxfusion.training.trainable import join, split
from tests.references import random_params

CONFIG = ModelConfig(
    width=32,
    text_embedding=TextEmbeddingConfig(vocab_size=13),
    vision=ViTConfig(image_size=8, patch_size=4, width=16, num_layers=2, num_heads=2, mlp_width=32, class_token=False),
    projector=LinearProjectorConfig(),
    decoder=TransformerDecoderConfig(num_layers=2, num_heads=2, mlp="swiglu", norm="rms"),
)
FEATURES = FeaturesConfig(num_tokens=4, feature_width=16)
POLICIES = ("none", "dots", "attention", "full")


def make_batch(config: ModelConfig) -> Batch:
    rng = np.random.default_rng(0)
    tokens = np.concatenate([np.full((2, 4), 12), rng.integers(0, 12, (2, 8))], axis=1).astype(np.int32)
    images = rng.normal(size=(2, 1, 4, 16) if isinstance(config.vision, FeaturesConfig) else (2, 1, 8, 8, 3))
    return Batch.from_tokens(tokens, images.astype(np.float32), image_token_id=12)


def loss_under(policy: str, config: ModelConfig, frozen=None):
    model, batch = build(config), make_batch(config)

    def function(params):
        with rematerialised(policy):
            return loss(model, params if frozen is None else join(params, frozen), batch)

    return function


def make_params(config: ModelConfig):
    return random_params(jax.eval_shape(lambda: init(build(config), jax.random.key(0))), np.random.default_rng(1))


def test_policies_change_what_is_kept_and_no_gradient():
    config = replace(CONFIG, vision=FEATURES)  # quick to compile
    params, kept = make_params(config), []
    expected = jax.jit(jax.grad(loss_under("none", config)))(params)
    for policy in POLICIES:
        function = loss_under(policy, config)
        residuals = jax.eval_shape(lambda params, function=function: jax.vjp(function, params)[1], params)
        kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals)))
        if policy in ("attention", "full"):
            assert_same(jax.jit(jax.grad(function))(params), expected)
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(POLICIES)


def test_layers_laid_out_and_those_between_them_may_be_computed_again():
    config = replace(
        CONFIG,
        vision=FEATURES,
        fusion=CrossAttentionFusionConfig(num_heads=2),
        decoder=replace(CONFIG.decoder, scan_layers=False, num_layers=1),
    )
    params = make_params(config)
    assert_same(*(jax.jit(jax.grad(loss_under(policy, config)))(params) for policy in ("dots", "none")))


def assert_same(gradients, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradients, expected)


def test_a_fused_kernel_is_run_again_where_nothing_is_kept_and_nowhere_else():
    config = replace(CONFIG, vision=None, attention="pallas")
    shapes, counts = jax.eval_shape(lambda: init(build(config), jax.random.key(0))), []
    for policy in POLICIES:
        traced = str(jax.make_jaxpr(jax.grad(loss_under(policy, config)))(shapes))
        counts.append(traced.count(" = pallas_call["))
    assert counts[0] > 1 and counts == [counts[0]] * 3 + [counts[0] + 1]


def flops(policy: str, trainable: tuple[str, ...], config: ModelConfig) -> float:
    shapes = jax.eval_shape(lambda: init(build(config), jax.random.key(0)))
    parts = split(shapes, trainable)

    def gradient(trainable, frozen):
        return jax.grad(loss_under(policy, config, frozen))(trainable)

    return jax.jit(gradient).lower(*parts).cost_analysis()["flops"]


def test_a_frozen_tower_is_not_computed_again():
    flat = replace(
        CONFIG,
        vision=replace(CONFIG.vision, image_size=8, patch_size=1, scan_layers=False),
        decoder=replace(CONFIG.decoder, scan_layers=False),
        projector=LinearProjectorConfig(pool="mean"),
    )
    needed = count_flops(flat, make_batch(flat), "dense")
    more = flops("full", ("decoder/*",), flat) - flops("none", ("decoder/*",), flat)
    # The last product of a layer is not read by its gradient; norms and activations come on top.
    assert 0.7 * needed.rooms["decoder"] < more < 1.3 * needed.rooms["decoder"] < needed.forward
