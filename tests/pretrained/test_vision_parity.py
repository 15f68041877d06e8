"""Vision towers against transformers, each read from what its save_pretrained writes, with every weight random."""

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from einops import rearrange
from safetensors.numpy import load_file, save_file

from jaxfusion.config.model import ResNetConfig, VGGConfig, ViTConfig
from jaxfusion.errors import UserError
from jaxfusion.models.tower import Tower, see
from jaxfusion.pretrained.checkpoint import Checkpoint, family_of, open_checkpoint
from jaxfusion.pretrained.families import FAMILIES
from jaxfusion.pretrained.stream import read_params
from jaxfusion.pretrained.table import flatten, tensors, to_theirs
from jaxfusion.pretrained.torchvision import describe

SMALL = dict(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=24, patch_size=8)
MLP = dict(intermediate_size=44)
TEXT = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=99, intermediate_size=8)
TEXT |= dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)

# Each: the class, its config, and globs of the tensors that are not read.
VITS = {
    "siglip": ("SiglipVisionModel", dict(**SMALL, **MLP), ["head.*"]),
    "siglip, partial patch": (
        "SiglipVisionModel",
        dict(SMALL, image_size=29, hidden_size=24, **MLP, hidden_act="gelu", vision_use_head=False),
        [],
    ),
    "siglip with text": (
        "SiglipModel",
        dict(vision_config=dict(**SMALL, **MLP, layer_norm_eps=1e-3), text_config=TEXT),
        ["text_model.*", "logit_*", "vision_model.head.*"],
    ),
    "clip": ("CLIPVisionModel", dict(**SMALL, **MLP), []),
    "clip, gelu": ("CLIPVisionModel", dict(SMALL, patch_size=5, **MLP, hidden_act="gelu", layer_norm_eps=1e-3), []),
    "clip with projection": ("CLIPVisionModelWithProjection", dict(**SMALL, **MLP), ["visual_projection.weight"]),
    "clip with text": (
        "CLIPModel",
        dict(vision_config=dict(SMALL, num_attention_heads=2, **MLP), text_config=TEXT),
        ["text_*", "logit_scale", "visual_projection.weight"],
    ),
    "dinov2": ("Dinov2Model", dict(**SMALL, layerscale_value=0.3), ["embeddings.mask_token"]),
    "dinov2, swiglu": (
        "Dinov2Model",
        dict(SMALL, hidden_size=24, use_swiglu_ffn=True, qkv_bias=False, mlp_ratio=3),
        ["embeddings.mask_token"],
    ),
    "dinov2 classifier": (
        "Dinov2ForImageClassification",
        dict(SMALL, patch_size=7, use_mask_token=False),
        ["classifier.*"],
    ),
    "vit": ("ViTModel", dict(**SMALL, **MLP), ["pooler.*"]),
    "vit, no bias": (
        "ViTModel",
        dict(SMALL, image_size=[20, 20], **MLP, qkv_bias=False, hidden_act="relu"),
        ["pooler.*"],
    ),
    "vit classifier": ("ViTForImageClassification", dict(**SMALL, **MLP, hidden_act="gelu_new"), ["classifier.*"]),
}
RESNETS = {
    "resnet, basic": (
        "ResNetModel",
        dict(embedding_size=8, hidden_sizes=[8, 16, 32], depths=[2, 1, 1], layer_type="basic"),
        [],
    ),
    "resnet, bottleneck": ("ResNetModel", dict(embedding_size=4, hidden_sizes=[16, 32], depths=[1, 3]), []),
    "resnet classifier": (
        "ResNetForImageClassification",
        dict(embedding_size=4, hidden_sizes=[16, 32, 64, 128], depths=[1, 2, 1, 1]),
        ["classifier.*"],
    ),
}


def make_reference(name: str, directory: Path) -> torch.nn.Module:
    """A random model, saved to the directory."""
    kind, settings, _ = (VITS | RESNETS)[name]
    cls = getattr(transformers, kind)
    model = cls(cls.config_class(**settings)).eval()
    randomise(model)
    model.save_pretrained(directory)
    return model


def randomise(model: torch.nn.Module) -> None:
    """All parameters and running statistics, at scales that keep the signal's size through the layers."""
    random = torch.Generator().manual_seed(1)
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            value.data.uniform_(0.5, 1.5, generator=random)
        elif "lambda1" in name:
            value.data.uniform_(0.2, 0.8, generator=random)
        elif value.ndim >= 2 and name.endswith("weight") and "position" not in name:
            value.data.normal_(0, value[0].numel() ** -0.5, generator=random)
        elif value.is_floating_point():
            value.data.normal_(0, 0.3, generator=random)


def read(path: Path, **changes) -> tuple[Tower, dict, Checkpoint]:
    checkpoint = open_checkpoint(path)
    family = family_of(checkpoint, FAMILIES)
    config = replace(family.read_config(checkpoint.config), **changes)
    return *read_tower(config, family, checkpoint), checkpoint


def read_tower(config, family, checkpoint: Checkpoint) -> tuple[Tower, dict]:
    tower = Tower(config)
    images = make_images(config.image_size)
    abstract = {"vision": jax.eval_shape(tower.module.init, jax.random.key(0), images)["params"]}
    params, report = read_params(
        checkpoint, family.table(config), abstract, ignored=family.ignored, aliases=family.aliases
    )
    assert report.surplus == []
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, abstract)
    return tower, params


def make_images(size: int) -> np.ndarray:
    """[2, 3]: two rows of three images."""
    return np.random.default_rng(0).normal(size=(2, 3, size, size, 3)).astype(np.float32)


def run_reference(model: torch.nn.Module, images: np.ndarray, **settings) -> transformers.utils.ModelOutput:
    for attribute in ("vision_model", "dinov2", "vit", "resnet"):
        model = getattr(model, attribute, model)
    pixels = torch.from_numpy(rearrange(images, "b m h w c -> (b m) c h w"))
    with torch.no_grad():
        return model(pixels, output_hidden_states=True, **settings)


def unfold(values: torch.Tensor) -> np.ndarray:
    return rearrange(values.float().numpy(), "(b m) ... -> b m ...", b=2)


def in_bfloat16(params: dict) -> dict:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)


def distance(ours: jax.Array, theirs: np.ndarray) -> float:
    """Relative L2."""
    assert ours.shape == theirs.shape
    return float(np.linalg.norm(np.asarray(ours, np.float32) - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("name", VITS)
def test_vit_features_equal_transformers(name, tmp_path):
    reference = make_reference(name, tmp_path)
    tower, params, _ = read(tmp_path)
    images = make_images(tower.config.image_size)
    expected = run_reference(reference, images)
    jitted = jax.jit(see, static_argnums=0)

    assert distance(jitted(tower, params, images), unfold(expected.last_hidden_state)) < 1e-5
    early = replace(tower, config=replace(tower.config, feature_layer=-2, scan_layers=False))
    assert distance(jitted(early, params, images), unfold(expected.hidden_states[-2])) < 1e-5
    half = jitted(replace(tower, dtype="bfloat16"), in_bfloat16(params), images)
    assert half.dtype == jnp.bfloat16
    assert distance(half, unfold(expected.last_hidden_state)) < 1e-2


@pytest.mark.parametrize("name", ["siglip", "clip", "dinov2, swiglu", "vit"])
def test_the_last_layers_states_are_those_before_the_norm(name, tmp_path):
    reference = make_reference(name, tmp_path)
    tower, params, _ = read(tmp_path, feature_layer=-1)
    images = make_images(24)
    assert distance(see(tower, params, images), unfold(run_reference(reference, images).hidden_states[-1])) < 1e-5


@pytest.mark.parametrize("name", ["clip", "dinov2", "vit"])
def test_without_class_token_the_patches_are_left(name, tmp_path):
    reference = make_reference(name, tmp_path)
    tower, params, _ = read(tmp_path, keep_class_token=False, feature_layer=-2)
    images = make_images(tower.config.image_size)

    features = see(tower, params, images)

    assert features.shape[2] == tower.config.num_tokens == 9
    assert distance(features, unfold(run_reference(reference, images).hidden_states[-2][:, 1:])) < 1e-5


@pytest.mark.parametrize(("name", "size"), [("dinov2", 16), ("dinov2", 46), ("siglip", 40), ("clip", 32)])
def test_other_image_sizes_resize_the_positions_as_transformers_does(name, size, tmp_path):
    reference = make_reference(name, tmp_path)
    tower, params, _ = read(tmp_path, image_size=size, position_size=24)
    images = make_images(size)
    settings = {} if name == "dinov2" else {"interpolate_pos_encoding": True}

    features = jax.jit(see, static_argnums=0)(tower, params, images)

    assert features.shape[2] == tower.config.num_tokens
    assert distance(features, unfold(run_reference(reference, images, **settings).last_hidden_state)) < 1e-5


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_features_equal_transformers(name, tmp_path):
    reference = make_reference(name, tmp_path)
    tower, params, _ = read(tmp_path, image_size=45)
    images = make_images(45)
    expected = rearrange(unfold(run_reference(reference, images).last_hidden_state), "b m d h w -> b m (h w) d")
    jitted = jax.jit(see, static_argnums=0)

    assert distance(jitted(tower, params, images), expected) < 1e-5
    half = jitted(replace(tower, dtype="bfloat16"), in_bfloat16(params), images)
    assert distance(half, expected) < 1e-2


@pytest.mark.parametrize("name", VITS | RESNETS)
def test_every_tensor_comes_back_bit_by_bit(name, tmp_path):
    make_reference(name, tmp_path)
    tower, params, checkpoint = read(tmp_path)
    family = family_of(checkpoint, FAMILIES)
    leaves = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    stored = load_file(tmp_path / "model.safetensors")
    unread = ["*.num_batches_tracked", *(VITS | RESNETS)[name][2]]
    wanted = {key: value for key, value in stored.items() if not any(fnmatch(key, glob) for glob in unread)}

    written = {}
    for theirs, row, layer, _ in tensors(family.table(tower.config), leaves):
        values = [leaves[path] if layer is None else leaves[path][layer] for path in row.paths]
        written[theirs] = to_theirs(row, values)

    aliases = [(old, new) for old, new in family.aliases if any(key.startswith(old) for key in wanted)]
    old, new = aliases[0] if aliases and wanted.keys() != written.keys() else ("", "")
    wanted = {new + key.removeprefix(old): value for key, value in wanted.items()}
    assert written.keys() == wanted.keys()
    for key, value in written.items():
        assert value.shape == wanted[key].shape
        np.testing.assert_array_equal(value.view(np.uint32), wanted[key].view(np.uint32))


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_files_of_before_transformers_5_name_the_tower(kind, tmp_path):
    reference = make_reference(kind, tmp_path)
    file = tmp_path / "model.safetensors"
    old = {f"vision_model.{name}": value for name, value in load_file(file).items()}
    save_file(old | {"vision_model.embeddings.position_ids": np.arange(9)[None]}, file)
    tower, params, _ = read(tmp_path)
    images = make_images(24)
    assert distance(see(tower, params, images), unfold(run_reference(reference, images).last_hidden_state)) < 1e-5


# --- torchvision ------------------------------------------------------------------------------------------------------


def to_torchvision(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """transformers' names of a ResNet as torchvision's, of which the latter's own converter knows the pairs."""
    renamed = {}
    for name, value in state.items():
        key = name.replace("embedder.embedder.convolution", "conv1").replace("embedder.embedder.normalization", "bn1")
        if key.startswith("encoder"):
            _, _, stage, _, block, part, *rest = key.split(".")
            if part == "shortcut":
                rest = ["downsample", {"convolution": "0", "normalization": "1"}[rest[0]], rest[1]]
            else:
                index, module, leaf = rest
                rest = [{"convolution": "conv", "normalization": "bn"}[module] + str(int(index) + 1), leaf]
            key = ".".join([f"layer{int(stage) + 1}", block, *rest])
        renamed[key] = value.numpy()
    return renamed


def read_file(file: Path, **changes) -> tuple[Tower, dict]:
    checkpoint = open_checkpoint(file)
    family = family_of(checkpoint, FAMILIES)
    return read_tower(replace(family.read_config(checkpoint.config), **changes), family, checkpoint)


@pytest.mark.parametrize("name", ["resnet, basic", "resnet, bottleneck"])
def test_resnet_under_torchvisions_names(name, tmp_path):
    reference = make_reference(name, tmp_path)
    weights = to_torchvision(reference.state_dict())
    save_file(weights | {"fc.weight": np.zeros((5, 32), np.float32)}, tmp_path / "resnet.safetensors")
    (tmp_path / "config.json").unlink()
    images = make_images(40)
    expected = rearrange(unfold(run_reference(reference, images).last_hidden_state), "b m d h w -> b m (h w) d")

    tower, params = read_file(tmp_path / "resnet.safetensors", image_size=40)

    assert isinstance(tower.config, ResNetConfig)
    assert distance(jax.jit(see, static_argnums=0)(tower, params, images), expected) < 1e-5


@pytest.mark.parametrize("depths", [(1, 1, 2, 2, 2), (2, 2, 4, 4, 4)], ids=["vgg11", "vgg19"])
def test_vgg_under_torchvisions_names(depths, tmp_path):
    widths, layers, channels = (4, 8, 8, 12, 16), [], 3
    for depth, width in zip(depths, widths, strict=True):
        for _ in range(depth):
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            channels = width
        layers.append(torch.nn.MaxPool2d(2, 2))
    reference = torch.nn.ModuleDict({"features": torch.nn.Sequential(*layers), "classifier": torch.nn.Linear(9, 2)})
    randomise(reference)
    save_file({key: value.numpy() for key, value in reference.state_dict().items()}, tmp_path / "vgg.safetensors")
    images = make_images(64)
    with torch.no_grad():
        maps = reference["features"](torch.from_numpy(rearrange(images, "b m h w c -> (b m) c h w")))

    tower, params = read_file(tmp_path / "vgg.safetensors", image_size=64)

    assert tower.config == VGGConfig(image_size=64, stage_depths=depths, stage_widths=widths)
    expected = rearrange(unfold(maps), "b m d h w -> b m (h w) d")
    assert distance(jax.jit(see, static_argnums=0)(tower, params, images), expected) < 1e-5


def test_files_of_no_known_network_are_told_apart():
    norms = {f"features.{i}.weight": (8, 3, 3, 3) if i % 2 == 0 else (8,) for i in range(4)}
    wide = {"conv1.weight": (64, 3, 7, 7), "bn1.weight": (64,), "layer1.0.conv1.weight": (128, 64, 1, 1)}
    file = Path("net.safetensors")
    assert describe(file, {"embeddings.cls_token": (1, 1, 8)}) == {}
    with pytest.raises(UserError, match="net.safetensors: .*batch norm"):
        describe(file, norms)
    with pytest.raises(UserError, match="net.safetensors: .*wide"):
        describe(file, wide | {"layer1.0.conv2.weight": (128, 128, 3, 3), "layer1.0.conv3.weight": (256, 128)})


# --- what cannot be expressed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "config", "message"),
    [
        ("siglip_vision_model", {"image_size": [224, 196]}, r"image_size: \[224, 196\]"),
        ("clip_vision_model", {"num_channels": 1}, "num_channels: 1"),
        ("clip", {"vision_config": {"hidden_act": "silu"}}, "hidden_act.*'silu'"),
        ("resnet", {"downsample_in_bottleneck": True}, "downsample_in_bottleneck"),
        ("resnet", {"hidden_sizes": [256, 512, 1024, 1024]}, "hidden_sizes"),
        ("resnet", {"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(model_type, config, message):
    with pytest.raises(UserError, match=message):
        FAMILIES[model_type].read_config(config)


def test_a_second_copy_of_clips_settings_is_the_one_that_counts():
    whole = {"vision_config": {"hidden_size": 64, "patch_size": 14}, "vision_config_dict": {"hidden_size": 96}}
    assert FAMILIES["clip"].read_config(whole) == FAMILIES["clip_vision_model"].read_config({"hidden_size": 96})
    theirs = transformers.CLIPConfig(**whole).vision_config
    assert (theirs.hidden_size, theirs.patch_size) == (96, 32)


def test_defaults_are_those_of_the_published_configs():
    so400m = FAMILIES["siglip"].read_config(
        {
            "vision_config": {
                "hidden_size": 1152,
                "image_size": 384,
                "intermediate_size": 4304,
                "model_type": "siglip_vision_model",
                "num_attention_heads": 16,
                "num_hidden_layers": 27,
                "patch_size": 14,
            }
        }
    )
    assert so400m.num_tokens == 729
    assert FAMILIES["vit"].read_config({}) == ViTConfig(norm_eps=1e-12)
    for model_type in ("siglip_vision_model", "clip_vision_model", "dinov2", "vit", "resnet"):
        default = transformers.AutoConfig.for_model(model_type).to_dict()
        assert FAMILIES[model_type].read_config({}) == FAMILIES[model_type].read_config(default)
