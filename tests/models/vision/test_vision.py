import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from jaxfusion.config.model import (
    FeaturesConfig,
    LookupConfig,
    ModelConfig,
    ResNetConfig,
    TextEmbeddingConfig,
    VGGConfig,
    ViTConfig,
)
from jaxfusion.config.presets import PRESETS
from jaxfusion.errors import UserError
from jaxfusion.models.check import check
from jaxfusion.models.vision import look, make_vision

FLOAT32 = jnp.dtype("float32")
TINY = {
    "resnet-batch": ResNetConfig(image_size=16, width=8, stage_depths=(1, 1), stem="imagenet"),
    "resnet-group": ResNetConfig(image_size=16, width=8, stage_depths=(1, 1), stem="small", norm="group"),
    "resnet-bottleneck": ResNetConfig(image_size=16, width=4, stage_depths=(1, 1), block="bottleneck"),
    "vgg": VGGConfig(image_size=16, stage_depths=(1, 2), stage_widths=(8, 16)),
    "vgg-group": VGGConfig(image_size=16, stage_depths=(1, 2), stage_widths=(8, 16), norm="group"),
    "vit": ViTConfig(image_size=16, patch_size=8, width=16, num_layers=2, num_heads=2, mlp_width=32),
    "vit, as CLIP and DINOv2": ViTConfig(
        image_size=16,
        position_size=24,
        patch_size=8,
        patch_bias=False,
        width=16,
        num_layers=2,
        num_heads=2,
        mlp="swiglu",
        mlp_width=32,
        pre_norm=True,
        layer_scale=True,
    ),
}
ODD_SIZES = [
    ResNetConfig(image_size=225),
    ResNetConfig(image_size=37, stem="small", norm="group", width=8),
    VGGConfig(image_size=75),
    ViTConfig(image_size=50, class_token=False, num_layers=1),
]


def make_images(config, rows=2, per_row=3, seed=0):
    """Random input of the kind that a vision config reads."""
    random = np.random.default_rng(seed)
    match config:
        case LookupConfig():
            return random.integers(0, config.num_images, (rows, per_row))
        case FeaturesConfig():
            shape = (rows, per_row, config.num_tokens, config.feature_width)
            return random.normal(size=shape).astype(np.float32)
        case _:
            return random.integers(0, 256, (rows, per_row, config.image_size, config.image_size, 3), np.uint8)


@functools.cache
def start(config):
    """The jitted network, random parameters and images for it."""
    network, images = make_vision(config, FLOAT32), make_images(config)
    random = np.random.default_rng(1)

    def draw(path, leaf):
        positive = path[-1].key in ("scale", "var")
        value = random.uniform(0.5, 1.5, leaf.shape) if positive else random.normal(0, 0.3, leaf.shape)
        return value.astype(np.float32)

    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    return jax.jit(network.apply), jax.tree_util.tree_map_with_path(draw, shapes), images


@pytest.mark.parametrize(
    "config",
    [config for config in PRESETS["vision"].values() if config is not None] + ODD_SIZES,
    ids=[name for name, config in PRESETS["vision"].items() if config is not None] + [str(c) for c in ODD_SIZES],
)
def test_tokens_and_width_are_the_configs(config):
    network, images = make_vision(config, jnp.dtype("bfloat16")), make_images(config)
    features, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert features.shape == (2, 3, config.num_tokens, config.feature_width)
    assert features.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} <= {FLOAT32}


@pytest.mark.parametrize("config", TINY.values(), ids=TINY)
def test_bytes_are_normalised_and_floats_taken_as_they_are(config):
    apply, variables, images = start(config)
    normalised = ((images.astype(np.float64) / 255 - config.mean) / config.std).astype(np.float32)
    features = apply(variables, images)
    scale = np.std(features)
    assert scale > 1e-3
    np.testing.assert_allclose(features / scale, apply(variables, normalised) / scale, atol=1e-5)


@pytest.mark.parametrize("config", TINY.values(), ids=TINY)
def test_rows_and_images_do_not_touch_each_other(config):
    apply, variables, images = start(config)
    changed = images.copy()
    changed[0, 1] = 255 - changed[0, 1]
    before, after = apply(variables, images), apply(variables, changed)
    same = np.abs(np.asarray(before - after)).max(axis=(2, 3)) < 1e-5 * np.std(before)
    np.testing.assert_array_equal(same, [[True, False, True], [True, True, True]])


@pytest.mark.parametrize("config", [*TINY.values(), LookupConfig(num_images=5, width=8)], ids=[*TINY, "lookup"])
def test_every_parameter_learns_and_stored_statistics_do_not(config):
    apply, variables, images = start(config)
    shape = (*images.shape[:2], config.num_tokens, config.feature_width)
    weights = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda variables: jnp.sum(apply(variables, images) * weights)))

    for path, leaf in flatten_dict(gradient(variables)["params"]).items():
        assert np.isfinite(leaf).all(), path
        if path[-1] in ("mean", "var"):
            assert not np.any(leaf), path
        elif path[-2:] != ("key", "bias"):  # a softmax does not change when all keys are shifted
            assert np.abs(leaf).max() > 1e-4, path


@pytest.mark.parametrize("feature_layer", [-1, -2])
def test_what_comes_after_the_feature_layer_is_not_computed(feature_layer):
    config = replace(TINY["vit"], feature_layer=feature_layer, keep_class_token=False)
    apply, variables, images = start(config)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, start(TINY["vit"])[1])
    broken = jax.tree.map(np.copy, variables["params"])
    broken["final_norm"]["scale"][:] = np.nan
    for leaf in jax.tree.leaves(broken["layers"]):
        leaf[2 + feature_layer + 1 :] = np.nan
    features = apply({"params": broken}, images)
    assert features.shape == (2, 3, 4, 16)
    np.testing.assert_array_equal(features, apply(variables, images))


@pytest.mark.parametrize("feature_layer", [1, -3])
def test_a_feature_layer_that_is_not_there_is_refused(feature_layer):
    vision = replace(TINY["vit"], feature_layer=feature_layer)
    with pytest.raises(UserError, match=f"vision.feature_layer: {feature_layer}.*-2"):
        check(ModelConfig(text_embedding=TextEmbeddingConfig(vocab_size=9), vision=vision))


def test_vit_scanned_and_unrolled_agree_on_the_same_parameters():
    config = TINY["vit"]
    images = make_images(config)
    scanned, unrolled = (make_vision(replace(config, scan_layers=scan), FLOAT32) for scan in (True, False))
    variables = jax.jit(scanned.init)(jax.random.key(0), images)
    kernel = variables["params"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.shape == (2, 16, 32)
    assert not np.allclose(kernel[0], kernel[1])
    results = [jax.jit(network.apply)(variables, images) for network in (scanned, unrolled)]
    np.testing.assert_allclose(*results, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet-batch", "resnet-group", "vit"])
def test_bfloat16_computes_nearly_the_same(name):
    config = TINY[name]
    apply, variables, images = start(config)
    exact = apply(variables, images)
    rough = jax.jit(make_vision(config, jnp.dtype("bfloat16")).apply)(variables, images)
    assert rough.dtype == jnp.bfloat16
    assert np.std(rough.astype(np.float32) - exact) < 0.03 * np.std(exact)


def test_lookup_gives_each_id_its_row_of_the_table():
    config = LookupConfig(num_images=7, width=4)
    apply, variables, ids = start(config)
    table = np.asarray(variables["params"]["table"]["embedding"])
    np.testing.assert_array_equal(apply(variables, ids), table[ids][:, :, None])


def test_precomputed_features_pass_through():
    config = FeaturesConfig(num_tokens=3, feature_width=5)
    apply, variables, features = start(config)
    assert not variables
    np.testing.assert_array_equal(apply({}, features), features)


@pytest.mark.parametrize("name", ["resnet-group", "vgg", "vit"])
@pytest.mark.parametrize("shape", [(1, 1, 24, 16, 3), (1, 1, 16, 16, 1), (1, 16, 16, 3)])
def test_wrong_image_shape_is_named_with_the_right_one(name, shape):
    network = make_vision(TINY[name], FLOAT32)
    message = rf"{', '.join(map(str, shape))}.*\[B, M, 16, 16, 3\]"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(shape, jnp.uint8))


@pytest.mark.parametrize(
    ("config", "images", "message"),
    [
        (FeaturesConfig(num_tokens=4, feature_width=8), np.zeros((2, 1, 4, 6), np.float32), r"2, 1, 4, 6.* 4, 8\]"),
        (FeaturesConfig(num_tokens=4, feature_width=8), np.zeros((2, 1, 4, 8), np.int32), r"int32.*float"),
        (LookupConfig(), np.zeros((2, 1), np.float32), r"float32.*integer"),
        (LookupConfig(), np.zeros((2, 1, 8, 8, 3), np.uint8), r"2, 1, 8, 8, 3.*\[B, M\]"),
    ],
)
def test_wrong_features_and_ids_are_named(config, images, message):
    with pytest.raises(ValueError, match=message):
        make_vision(config, FLOAT32).init(jax.random.key(0), images)


def test_features_are_passed_on_only_where_they_could_be_the_networks_own():
    network = make_vision(TINY["vit"], FLOAT32)
    features = np.ones((2, 1, TINY["vit"].num_tokens, TINY["vit"].feature_width), np.float32)
    np.testing.assert_array_equal(look(network, features), features)
    with pytest.raises(ValueError, match=r"float32\[2, 1, 4, 6\].*give what this vit makes of pictures"):
        look(network, np.zeros((2, 1, 4, 6), np.float32))
