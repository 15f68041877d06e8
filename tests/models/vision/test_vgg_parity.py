"""VGG against torch modules in torchvision's order, whose parameters are named features.N.weight and .bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from einops import rearrange
from flax.traverse_util import unflatten_dict

from jaxfusion.config.model import VGGConfig
from jaxfusion.models.vision import make_vision
from jaxfusion.models.vision.convolution import num_groups

NARROW = (8, 16, 32, 64, 64)


def make_reference(config: VGGConfig) -> torch.nn.Module:
    layers, channels = [], 3
    for depth, width in zip(config.stage_depths, config.stage_widths, strict=True):
        for _ in range(depth):
            layers.append(torch.nn.Conv2d(channels, width, 3, padding=1, bias=config.norm == "none"))
            if config.norm == "group":
                layers.append(torch.nn.GroupNorm(num_groups(width), width))
            layers.append(torch.nn.ReLU(inplace=True))
            channels = width
        layers.append(torch.nn.MaxPool2d(kernel_size=2, stride=2))
    return torch.nn.ModuleDict({"features": torch.nn.Sequential(*layers)})


def to_params(config: VGGConfig, state: dict[str, torch.Tensor]) -> dict:
    """Convolutions come every two layers, or three with norms, and a pooling layer stands between stages."""
    params, index = {}, 0
    for stage, depth in enumerate(config.stage_depths):
        for layer in range(depth):
            ours = f"stage{stage}_layer{layer}"
            kernel = state[f"features.{index}.weight"].numpy()
            params[ours, "conv", "kernel"] = rearrange(kernel, "o i h w -> h w i o")
            if config.norm == "none":
                params[ours, "conv", "bias"] = state[f"features.{index}.bias"].numpy()
            else:
                params[ours, "norm", "scale"] = state[f"features.{index + 1}.weight"].numpy()
                params[ours, "norm", "bias"] = state[f"features.{index + 1}.bias"].numpy()
            index += 2 if config.norm == "none" else 3
        index += 1
    return unflatten_dict(params)


@pytest.mark.parametrize(
    "config",
    [
        VGGConfig(image_size=64, stage_widths=NARROW),
        VGGConfig(image_size=75, stage_depths=(2, 2, 4, 4, 4), stage_widths=NARROW),
        VGGConfig(image_size=20, stage_depths=(1, 2), stage_widths=(16, 32), norm="group"),
    ],
    ids=["vgg-16", "vgg-19 at an odd size", "group norm"],
)
def test_same_features_as_torch(config):
    reference = make_reference(config)
    generator = torch.Generator().manual_seed(1)
    for parameter in reference.parameters():
        fan_in = parameter[0].numel()
        scale = (2 / fan_in) ** 0.5 if parameter.ndim == 4 else 0.3
        parameter.data.normal_(0, scale, generator=generator)
    images = np.random.default_rng(0).normal(size=(2, 2, config.image_size, config.image_size, 3)).astype(np.float32)
    with torch.no_grad():
        maps = reference["features"](torch.from_numpy(rearrange(images, "b m h w c -> (b m) c h w")))
        expected = rearrange(maps.numpy(), "(b m) d h w -> b m (h w) d", b=2)
    network = make_vision(config, jnp.dtype("float32"))
    params = to_params(config, reference.state_dict())
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    features = jax.jit(network.apply)({"params": params}, images)

    assert features.shape == (2, 2, config.num_tokens, config.feature_width)
    np.testing.assert_allclose(features / expected.std(), expected / expected.std(), atol=1e-5, rtol=0)
