"""ViT against transformers at the same weights; without a class token, against transformers' own parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from flax.traverse_util import unflatten_dict

from jaxfusion.config.model import ViTConfig
from jaxfusion.models.vision import make_vision

# Ours under layers, theirs under layers.N, and how one layer's tensor is turned round (n heads of size h).
LAYER = [
    ("attention_norm.scale", "layernorm_before.weight", "d -> d"),
    ("attention_norm.bias", "layernorm_before.bias", "d -> d"),
    ("attention.query.kernel", "attention.q_proj.weight", "(n h) d -> d n h"),
    ("attention.query.bias", "attention.q_proj.bias", "(n h) -> n h"),
    ("attention.key.kernel", "attention.k_proj.weight", "(n h) d -> d n h"),
    ("attention.key.bias", "attention.k_proj.bias", "(n h) -> n h"),
    ("attention.value.kernel", "attention.v_proj.weight", "(n h) d -> d n h"),
    ("attention.value.bias", "attention.v_proj.bias", "(n h) -> n h"),
    ("attention.out.kernel", "attention.o_proj.weight", "d (n h) -> n h d"),
    ("attention.out.bias", "attention.o_proj.bias", "d -> d"),
    ("mlp_norm.scale", "layernorm_after.weight", "d -> d"),
    ("mlp_norm.bias", "layernorm_after.bias", "d -> d"),
    ("mlp.up.kernel", "mlp.fc1.weight", "f d -> d f"),
    ("mlp.up.bias", "mlp.fc1.bias", "f -> f"),
    ("mlp.down.kernel", "mlp.fc2.weight", "d f -> f d"),
    ("mlp.down.bias", "mlp.fc2.bias", "d -> d"),
]


def to_params(config: ViTConfig, state: dict[str, torch.Tensor]) -> dict:
    state = {name: tensor.numpy() for name, tensor in state.items()}
    positions = state["embeddings.position_embeddings"][0]
    params = {
        "patches.kernel": rearrange(state["embeddings.patch_embeddings.projection.weight"], "d c p q -> (p q c) d"),
        "patches.bias": state["embeddings.patch_embeddings.projection.bias"],
        "positions": positions if config.class_token else positions[1:],
        "final_norm.scale": state["layernorm.weight"],
        "final_norm.bias": state["layernorm.bias"],
    }
    if config.class_token:
        params["class_token"] = state["embeddings.cls_token"][0, 0]
    for ours, theirs, pattern in LAYER:
        sizes = {"n": config.num_heads} if "n h" in pattern else {}
        layers = [rearrange(state[f"layers.{i}.{theirs}"], pattern, **sizes) for i in range(config.num_layers)]
        params[f"layers.{ours}"] = np.stack(layers)
    return unflatten_dict(params, sep=".")


def run_reference(model: transformers.ViTModel, pixels: torch.Tensor, class_token: bool) -> np.ndarray:
    with torch.no_grad():
        if class_token:
            return model(pixels).last_hidden_state.numpy()
        x = model.embeddings.patch_embeddings(pixels) + model.embeddings.position_embeddings[:, 1:]
        for layer in model.layers:
            x = layer(x)
        return model.layernorm(x).numpy()


@pytest.mark.parametrize("scan_layers", [True, False], ids=["scan", "unrolled"])
@pytest.mark.parametrize(
    ("class_token", "image_size"), [(True, 24), (False, 24), (True, 29)], ids=["class token", "none", "odd size"]
)
def test_same_features_as_transformers(class_token, image_size, scan_layers):
    config = ViTConfig(
        image_size=image_size,
        patch_size=8,
        width=32,
        num_layers=3,
        num_heads=4,
        mlp_width=48,
        class_token=class_token,
        norm_eps=1e-3,
        scan_layers=scan_layers,
    )
    reference = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=config.width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_width,
            layer_norm_eps=config.norm_eps,
            image_size=image_size,
            patch_size=config.patch_size,
        ),
        add_pooling_layer=False,
    ).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in reference.parameters():
        parameter.data.normal_(0, 0.3, generator=generator)
    images = np.random.default_rng(0).normal(size=(2, 2, image_size, image_size, 3)).astype(np.float32)
    pixels = torch.from_numpy(rearrange(images, "b m h w c -> (b m) c h w"))
    expected = rearrange(run_reference(reference, pixels, class_token), "(b m) k d -> b m k d", b=2)
    network = make_vision(config, jnp.dtype("float32"))
    params = to_params(config, reference.state_dict())
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    features = jax.jit(network.apply)({"params": params}, images)

    assert features.shape == (2, 2, config.num_tokens, config.feature_width)
    np.testing.assert_allclose(features / expected.std(), expected / expected.std(), atol=1e-5, rtol=0)
