"""Pixels against the reference processors, on photographs and awkward sizes, to the normalised values."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from PIL import Image
from sklearn.datasets import load_sample_images
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from jaxfusion.config.model import ResNetConfig, ViTConfig
from jaxfusion.errors import UserError
from jaxfusion.models.vision.images import fold_images
from jaxfusion.pretrained.pixels import read_pixels

PROCESSORS = {
    "clip": (CLIPImageProcessorPil, dict(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48})),
    "siglip": (SiglipImageProcessorPil, dict(size={"height": 56, "width": 56})),
    "siglip 2": (SiglipImageProcessorPil, dict(size={"height": 56, "width": 56}, resample=2)),
    "dinov2": (
        BitImageProcessorPil,
        dict(
            size={"shortest_edge": 64},
            crop_size={"height": 56, "width": 56},
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
    ),
    "vit": (ViTImageProcessorPil, dict(size={"height": 40, "width": 40}, do_convert_rgb=True)),
    "vit, -1 to 1 by another factor": (
        ViTImageProcessorPil,
        dict(size={"height": 40, "width": 40}, do_convert_rgb=True, rescale_factor=1 / 127.5, image_mean=[1.0] * 3)
        | dict(image_std=[1.0] * 3),
    ),
    "resnet": (ConvNextImageProcessorPil, dict(size={"shortest_edge": 56}, do_convert_rgb=True)),
    "resnet, warped": (ConvNextImageProcessorPil, dict(size={"shortest_edge": 384}, resample=2, do_convert_rgb=True)),
}


def pictures() -> dict[str, Image.Image]:
    """scikit-learn's two photographs, and small ones of odd sizes and other modes."""
    random = np.random.default_rng(0)
    flower, temple = (Image.fromarray(image) for image in load_sample_images().images)
    sizes = {f"{h}x{w}": random.integers(0, 256, (h, w, 3), np.uint8) for h, w in [(1, 7), (7, 1), (333, 517), (3, 3)]}
    small = flower.resize((61, 47))
    alpha = small.copy()
    alpha.putalpha(Image.fromarray(random.integers(0, 256, (47, 61), np.uint8)))
    odd = {name: Image.fromarray(image) for name, image in sizes.items()}
    return {"flower": flower, "temple": temple, **odd, "grey": small.convert("L"), "alpha": alpha}


def save(directory: Path, name: str) -> transformers.image_processing_backends.PilBackend:
    kind, settings = PROCESSORS[name]
    reference = kind(**settings)
    reference.save_pretrained(directory)
    return reference


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_equal_the_reference_processor(name, tmp_path):
    reference = save(tmp_path, name)
    pixels = read_pixels(tmp_path)
    config = pixels.fit(ViTConfig(patch_size=8))
    assert config.image_size == pixels.image_size

    for kind, picture in pictures().items():
        expected = reference(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        image = pixels(picture)
        assert image.dtype == np.uint8 and image.shape == (pixels.image_size, pixels.image_size, 3)
        normalised = np.asarray(fold_images(image[None, None], config, jnp.dtype("float32")))[0]
        np.testing.assert_allclose(normalised, expected, atol=2e-6, rtol=0, err_msg=kind)


def test_of_a_picture_that_could_be_cut_into_tiles_the_whole_is_taken(tmp_path):
    reference = Idefics3ImageProcessorPil(max_image_size={"longest_edge": 28}, size={"longest_edge": 112})
    reference.save_pretrained(tmp_path)
    pixels = read_pixels(tmp_path)
    assert pixels.image_size == 28
    for kind, picture in pictures().items():
        expected = reference([[picture.convert("RGB")]], do_image_splitting=False, return_tensors="np")["pixel_values"]
        expected = expected[0, 0].transpose(1, 2, 0)
        if kind != "alpha":  # under which we lay white, and they nothing
            image = (pixels(picture) / 255 - pixels.mean) / pixels.std
            np.testing.assert_allclose(image, expected, atol=2e-6, rtol=0, err_msg=kind)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_arrays_are_taken_as_pictures_are(name, tmp_path):
    save(tmp_path, name)
    pixels = read_pixels(tmp_path)
    for picture in pictures().values():
        np.testing.assert_array_equal(pixels(np.array(picture)), pixels(picture))
    grey = np.array(pictures()["grey"])
    np.testing.assert_array_equal(pixels(grey[..., None]), pixels(grey))


def test_settings_within_a_processors_file(tmp_path):
    save(tmp_path, "clip")
    file = tmp_path / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": settings, "image_seq_length": 9}))
    pixels = read_pixels(tmp_path)
    assert (pixels.image_size, pixels.mean, pixels.std) == (
        48,
        tuple(settings["image_mean"]),
        tuple(settings["image_std"]),
    )


@pytest.mark.parametrize("model_type", ["torchvision_resnet", "torchvision_vgg"])
def test_torchvisions_reference_transforms(model_type, tmp_path):
    """Against Pillow's own: resized so that 256 is the shorter side, and the middle of that."""
    pixels = read_pixels(tmp_path / "resnet.safetensors", model_type)
    config = pixels.fit(ResNetConfig(image_size=45))
    assert (config.image_size, config.mean, config.std) == (224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    odd = {f"{size}": pictures()["flower"].resize(size) for size in [(257, 256), (256, 259), (261, 256), (1000, 301)]}
    for kind, picture in (pictures() | odd).items():
        width, height = picture.size
        if kind == "alpha":
            white = Image.new("RGB", picture.size, "white")
            white.paste(picture, mask=picture.getchannel("A"))
            picture = white
        large = (256, 256 * height // width) if width < height else (256 * width // height, 256)
        resized = picture.convert("RGB").resize(large, Image.Resampling.BILINEAR)
        # torchvision rounds where the middle begins, halves to the even number.
        left, top = ((side - 224) // 2 + ((side - 224) % 4 == 3) for side in large)
        expected = np.asarray(resized)[top : top + 224, left : left + 224]
        np.testing.assert_allclose(pixels(picture), expected, atol=int(kind == "alpha"), err_msg=kind)
        np.testing.assert_array_equal(pixels(np.asarray(picture)), pixels(picture))


def test_no_settings(tmp_path):
    assert read_pixels(tmp_path) is None
    (tmp_path / "processor_config.json").write_text("{}")
    assert read_pixels(tmp_path) is None


def test_towers_are_fitted_to_the_images(tmp_path):
    save(tmp_path, "dinov2")
    pixels = read_pixels(tmp_path)
    tower = pixels.fit(ViTConfig(image_size=112, patch_size=14))
    assert (tower.image_size, tower.position_size, tower.num_tokens) == (56, 112, 17)
    assert pixels.fit(tower) == tower
    assert pixels.fit(ViTConfig(image_size=56, patch_size=14)).position_size == 0
    assert pixels.fit(ResNetConfig()) == ResNetConfig(image_size=56)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_center_crop": False}, "size: .*shortest_edge.*no square"),
        ({"crop_size": {"height": 48, "width": 40}}, "crop_size: .*no square"),
        ({"image_mean": [0.5]}, r"image_mean: \(0.5,\)"),
        ({"image_std": [0.5, 0.5, 0.0]}, "image_std: .*positive"),
        ({"rescale_factor": -1.0}, "rescale_factor: -1.0"),
        ({"image_processor_type": "OwnImageProcessor"}, "image_processor_type: .*OwnImageProcessor"),
        ({"image_processor_type": "Qwen2VLImageProcessor", "size": None}, "image_processor_type: "),
    ],
)
def test_what_makes_no_square_picture_is_refused_by_name(changes, message, tmp_path):
    save(tmp_path, "clip")
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=message) as error:
        read_pixels(tmp_path)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_code_beside_the_settings_is_not_run(tmp_path):
    save(tmp_path, "clip")
    file = tmp_path / "preprocessor_config.json"
    settings = json.loads(file.read_text()) | {"auto_map": {"AutoImageProcessor": "own.Own"}}
    (tmp_path / "own.py").write_text("raise SystemExit('code of the checkpoint ran')")
    file.write_text(json.dumps(settings))
    assert read_pixels(tmp_path).image_size == 48
    file.write_text(json.dumps(settings | {"image_processor_type": "OwnImageProcessor"}))
    with pytest.raises(UserError, match="image_processor_type"):
        read_pixels(tmp_path)
