"""ResNet against transformers at the same weights, with running statistics that are far from trivial."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from flax.traverse_util import unflatten_dict

from jaxfusion.config.model import ResNetConfig
from jaxfusion.models.vision import make_vision

NAMES = [
    (r"^embedder\.embedder", "stem"),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)", r"stage\1_block\2"),
    (r"layer\.(\d+)", r"layer\1"),
    (r"convolution\.weight", "conv.kernel"),
    (r"normalization\.weight", "norm.scale"),
    (r"normalization\.bias", "norm.bias"),
    (r"normalization\.running_", "norm."),
]


def to_params(state: dict[str, torch.Tensor]) -> dict:
    params = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        for pattern, ours in NAMES:
            name = re.sub(pattern, ours, name)
        value = tensor.numpy()
        params[tuple(name.split("."))] = rearrange(value, "o i h w -> h w i o") if value.ndim == 4 else value
    return unflatten_dict(params)


def randomise(model: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.5, generator=generator)
            module.running_var.uniform_(0.3, 3, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)


@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(image_size=64, width=8),  # ResNet-18's depth
        ResNetConfig(image_size=61, width=8, stage_depths=(2, 1, 1)),
        ResNetConfig(image_size=64, width=4, block="bottleneck", stage_depths=(3, 4, 6, 3)),  # ResNet-50's
    ],
    ids=["basic", "odd size", "bottleneck"],
)
def test_same_features_as_transformers(config):
    expansion = 4 if config.block == "bottleneck" else 1
    torch.manual_seed(0)  # the convolutions' weights come from the global generator
    reference = transformers.ResNetModel(
        transformers.ResNetConfig(
            embedding_size=config.width,
            hidden_sizes=[config.width * 2**stage * expansion for stage in range(len(config.stage_depths))],
            depths=list(config.stage_depths),
            layer_type=config.block,
        )
    ).eval()
    randomise(reference, seed=1)
    images = np.random.default_rng(0).normal(size=(2, 2, config.image_size, config.image_size, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = torch.from_numpy(rearrange(images, "b m h w c -> (b m) c h w"))
        expected = rearrange(reference(pixels).last_hidden_state.numpy(), "(b m) d h w -> b m (h w) d", b=2)
    network = make_vision(config, jnp.dtype("float32"))
    params = to_params(reference.state_dict())
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    features = jax.jit(network.apply)({"params": params}, images)

    assert features.shape == (2, 2, config.num_tokens, config.feature_width)
    np.testing.assert_allclose(features / expected.std(), expected / expected.std(), atol=1e-5, rtol=0)
