import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxfusion.config.model import (
    LinearProjectorConfig,
    MappingProjectorConfig,
    MLPProjectorConfig,
    PerceiverProjectorConfig,
    PixelShuffleProjectorConfig,
    PoolProjectorConfig,
)
from jaxfusion.models.projector import make_projector

FLOAT32 = jnp.dtype("float32")
WIDTH = 12
PROJECTORS = {
    "linear": LinearProjectorConfig(),
    "linear-mean": LinearProjectorConfig(pool="mean"),
    "linear-concatenate": LinearProjectorConfig(pool="concatenate"),
    "linear-prefix": LinearProjectorConfig(pool="mean", prefix_length=2),
    "mlp": MLPProjectorConfig(),
    "mlp-wide": MLPProjectorConfig(hidden_width=20),
    "mlp-relu": MLPProjectorConfig(activation="relu", bias=False),
    "pixel-shuffle": PixelShuffleProjectorConfig(factor=2),
    "pixel-shuffle-4": PixelShuffleProjectorConfig(factor=4, bias=False),
    "pool": PoolProjectorConfig(factor=2),
    "pool-4": PoolProjectorConfig(factor=4, norm_eps=0.1),
    "perceiver": PerceiverProjectorConfig(num_queries=5, num_layers=2, num_heads=3),
    "mapping": MappingProjectorConfig(prefix_length=4, num_layers=2, num_heads=3),
}


def start(config, num_tokens=16, width=6):
    """The projector, random parameters of order one third, and visual tokens [2, 3, K, E]."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 3, num_tokens, width)).astype(np.float32)
    projector = make_projector(config, WIDTH, FLOAT32)
    shapes = jax.eval_shape(projector.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) / 3, shapes)
    return projector, params, x


def dense(x, params):
    return x @ params["kernel"] + params.get("bias", 0)


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]


def attend(x, context, params):
    query, key, value = (
        np.einsum("td,dnh->tnh", source, params[name]["kernel"]) + params[name]["bias"]
        for name, source in (("query", x), ("key", context), ("value", context))
    )
    weights = np.exp(np.einsum("tnh,snh->nts", query, key) / np.sqrt(query.shape[-1]))
    mixed = np.einsum("nts,snh->tnh", weights / weights.sum(-1, keepdims=True), value)
    return np.einsum("tnh,nhd->td", mixed, params["out"]["kernel"]) + params["out"]["bias"]


def mlp(x, params):
    hidden = dense(x, params["up"])
    gelu = hidden / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return dense(gelu, params["down"])


def perceiver(x, params, config):
    tokens, latents = dense(x, params["input"]), params["latents"]
    for index in range(config.num_layers):
        layer = params[f"layer{index}"]
        normed = layer_norm(latents, layer["latent_norm"])
        context = np.concatenate([layer_norm(tokens, layer["token_norm"]), normed])
        latents = latents + attend(normed, context, layer["attention"])
        latents = latents + mlp(layer_norm(latents, layer["mlp_norm"]), layer["mlp"])
    return layer_norm(latents, params["final_norm"])


def mapping(x, params, config):
    x = np.concatenate([dense(x, params["input"]), params["prefix"]])
    for index in range(config.num_layers):
        layer = jax.tree.map(lambda leaf, i=index: leaf[i], params["transformer"]["layers"])
        normed = layer_norm(x, layer["attention_norm"])
        x = x + attend(normed, normed, layer["attention"])
        x = x + mlp(layer_norm(x, layer["mlp_norm"]), layer["mlp"])
    return layer_norm(x, params["transformer"]["final_norm"])[-config.prefix_length :]


def squares(x, config):
    """Each square's tokens, row by row."""
    side = math.isqrt(len(x))
    for top in range(0, side, config.factor):
        for left in range(0, side, config.factor):
            yield [
                x[(top + down) * side + left + right] for down in range(config.factor) for right in range(config.factor)
            ]


def shuffle_by_hand(x, params, config):
    return dense(np.stack([np.concatenate(cells) for cells in squares(x, config)]), params["linear"])


def pool_by_hand(x, params, config):
    means = np.stack([np.mean(cells, axis=0) for cells in squares(x, config)])
    normed = means / np.sqrt((means**2).mean(-1, keepdims=True) + config.norm_eps) * (1 + params["norm"]["scale"])
    return normed @ params["linear"]["kernel"]


def exact_gelu_mlp(x, params, config):
    hidden = dense(x, params["up"])
    return dense(hidden / 2 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))), params["down"])


REFERENCES = {
    "linear": lambda x, params, config: dense(x, params["linear"]),
    "linear-mean": lambda x, params, config: dense(x.mean(0, keepdims=True), params["linear"]),
    "linear-concatenate": lambda x, params, config: dense(x.reshape(1, -1), params["linear"]),
    "linear-prefix": lambda x, params, config: dense(x.mean(0), params["linear"]).reshape(2, WIDTH),
    "mlp": exact_gelu_mlp,
    "mlp-wide": exact_gelu_mlp,
    "mlp-relu": lambda x, params, config: dense(np.maximum(dense(x, params["up"]), 0), params["down"]),
    "pixel-shuffle": shuffle_by_hand,
    "pixel-shuffle-4": shuffle_by_hand,
    "pool": pool_by_hand,
    "pool-4": pool_by_hand,
    "perceiver": perceiver,
    "mapping": mapping,
}


@pytest.mark.parametrize("name", PROJECTORS)
def test_same_as_a_float64_reference_image_by_image(name):
    config = PROJECTORS[name]
    projector, params, x = start(config)
    out = jax.jit(projector.apply)({"params": params}, x)
    exact = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    expected = np.stack([[REFERENCES[name](image.astype(np.float64), exact, config) for image in row] for row in x])
    assert out.shape == (2, 3, config.num_tokens(16), WIDTH) == expected.shape
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        LinearProjectorConfig(pool="mean"),
        MLPProjectorConfig(),
        PixelShuffleProjectorConfig(),
        PoolProjectorConfig(),
        PerceiverProjectorConfig(num_queries=5, num_layers=1, num_heads=3),
        MappingProjectorConfig(prefix_length=4, num_layers=1, num_heads=3),
    ],
    ids=lambda config: config.kind,
)
def test_bfloat16_keeps_parameters_float32_and_every_one_learns(config):
    _, params, x = start(config)
    projector = make_projector(config, WIDTH, jnp.dtype("bfloat16"))
    weights = np.random.default_rng(1).normal(size=(2, 3, config.num_tokens(16), WIDTH))

    @jax.jit
    @jax.grad
    def gradient(params):
        out = projector.apply({"params": params}, jnp.asarray(x, jnp.bfloat16))
        assert out.dtype == jnp.bfloat16
        return jnp.sum(out * weights)

    for path, leaf in flatten_dict(gradient(params)).items():
        assert leaf.dtype == FLOAT32 and np.isfinite(leaf).all(), path
        if path[-2:] != ("key", "bias"):  # a softmax does not change when all keys are shifted
            assert np.abs(leaf).max() > 1e-3, path


@pytest.mark.parametrize(
    ("num_tokens", "factor", "message"),
    [(17, 2, r"square grid.*17.*class_token"), (36, 4, r"factor 4.*6 x 6"), (1, 2, r"factor 2.*1 x 1")],
)
def test_squares_of_tokens_need_a_square_grid(num_tokens, factor, message):
    for config in (PixelShuffleProjectorConfig(factor=factor), PoolProjectorConfig(factor=factor)):
        projector = make_projector(config, WIDTH, FLOAT32)
        with pytest.raises(ValueError, match=message):
            projector.init(jax.random.key(0), jnp.zeros((1, 1, num_tokens, 4)))
