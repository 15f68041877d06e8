"""From a picture to what a pretrained vision tower takes, by the settings in the checkpoint's own files.

The work is that of transformers' Pillow image processors, which need no torch, or of torchvision's reference
transforms. Their last two steps, scaling and normalising, are left to the device: an image stays bytes until it is
there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxfusion.config.model import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ModelConfig,
    ResNetConfig,
    VGGConfig,
    Vision,
    ViTConfig,
)
from jaxfusion.data.images import to_rgb
from jaxfusion.errors import UserError
from jaxfusion.pretrained.checkpoint import read_json
from jaxfusion.pretrained.torchvision import MODEL_TYPES

FILES = ("preprocessor_config.json", "processor_config.json")  # the second is what transformers 5 writes
RESIZED, CROPPED = 256, 224  # torchvision's sides; some of its newer weights were evaluated with another first one
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Pixels:
    """A checkpoint's way with pictures: call it with one.

    image_size: side of the square that comes out.
    mean, std:  of the values over 255, as the vision configs take them.
    prepare:    from a picture of any mode and size to uint8[image_size, image_size, 3].
    """

    image_size: int
    mean: Triple
    std: Triple
    prepare: Callable[[Image.Image], np.ndarray] = field(repr=False)

    def __call__(self, image: Image.Image | UInt8[np.ndarray, "h w *c"]) -> UInt8[np.ndarray, "H W 3"]:
        """Resized and cropped to the bytes that the reference scales and normalises.

        image: grey, RGB or with an alpha channel, under which white is laid.
        """
        return self.prepare(_picture(image))

    def fit(self, config: ViTConfig | ResNetConfig | VGGConfig) -> ViTConfig | ResNetConfig | VGGConfig:
        """The tower for these images. A ViT resizes its table of positions where that is for another size."""
        settings = dict(image_size=self.image_size, mean=self.mean, std=self.std)
        if isinstance(config, ViTConfig) and config.image_size != self.image_size:
            settings["position_size"] = config.position_size or config.image_size
        return replace(config, **settings)


def read_pixels(path: Path, model_type: str = "") -> Pixels | None:
    """The settings in a checkpoint's directory; None where it has none.

    model_type: of the checkpoint; torchvision's have no files, and their settings are the same for all.
    Raises UserError, by the field's name, for what does not end in one square RGB picture of a fixed size.
    """
    if model_type in MODEL_TYPES:
        return Pixels(CROPPED, IMAGENET_MEAN, IMAGENET_STD, _as_torchvision)
    file = next((path / name for name in FILES if (path / name).is_file()), None)
    settings = {} if file is None else read_json(file)
    if file is not None and file.name == FILES[1]:
        settings = settings.get("image_processor") or {}
    if not settings:
        return None
    try:
        from transformers import AutoImageProcessor
    except ModuleNotFoundError:
        raise UserError(f"{file}: to prepare images by it, pip install transformers") from None
    try:
        processor = AutoImageProcessor.from_pretrained(str(path), backend="pil", trust_remote_code=False)
    except Exception as error:  # of many kinds, as transformers finds what it cannot use
        said = f"{settings.get('image_processor_type')} does not load ({_first_sentence(error)})"
        _refuse(file, f"image_processor_type: {said}", "use a checkpoint whose image processor is transformers' own")
    if hasattr(processor, "do_image_splitting"):
        processor.do_image_splitting = False  # one tile an image (Idefics3, SmolVLM)
    size = _side(file, processor)
    mean, std = _normalisation(file, processor)
    return Pixels(size, mean, std, partial(_as_processor, processor))


def fit(config: ModelConfig | Vision, pixels: Pixels | None) -> ModelConfig | Vision:
    """A checkpoint's config, of a tower or of a whole model, for the pictures that its image processor makes."""
    if pixels is None:
        return config
    if isinstance(config, ModelConfig):
        return config if config.vision is None else replace(config, vision=pixels.fit(config.vision))
    return pixels.fit(config)


def _picture(image: Image.Image | np.ndarray) -> Image.Image:
    """An array as a picture: processors would take one that is small or narrow for channels first."""
    if isinstance(image, np.ndarray):
        return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    return image


def _as_torchvision(image: Image.Image) -> np.ndarray:
    """What torchvision's weights of ImageNet were evaluated with: the shorter side to 256, then the middle.

    Source: torchvision.transforms.functional's `resize` and `center_crop`, of a Pillow image.
    """
    image = to_rgb(image)
    shorter = min(image.size)
    image = image.resize([int(RESIZED * side / shorter) for side in image.size], Image.Resampling.BILINEAR)
    left, top = (round((side - CROPPED) / 2) for side in image.size)  # halves to the even number, as theirs
    return np.array(image.crop((left, top, left + CROPPED, top + CROPPED)))


def _as_processor(processor: Any, image: Image.Image) -> np.ndarray:
    return _run(processor, image)[0].transpose(1, 2, 0)


def _run(processor: Any, image: Image.Image) -> list[np.ndarray]:
    images = processor(image, do_convert_rgb=True, do_rescale=False, do_normalize=False)["pixel_values"]
    return images[0] if np.ndim(images[0]) == 4 else images  # some give a list of images for each text


def _side(file: Path, processor: Any) -> int:
    """Of the pictures that come out, which is seen by trying: processors differ in what their fields mean."""
    kind = type(processor).__name__.removesuffix("Pil")
    shapes = set()
    for width, height in ((3, 5), (900, 400), (400, 900)):
        try:
            images = _run(processor, Image.new("RGB", (width, height)))
        except Exception as error:
            said = f"{kind} cannot follow its settings ({_first_sentence(error)})"
            _refuse(file, f"image_processor_type: {said}", "correct them")
        one = len(images) == 1 and getattr(images[0], "dtype", None) == np.uint8 and images[0].ndim == 3
        if not one or images[0].shape[0] != 3:
            _refuse(
                file,
                f"image_processor_type: {kind} makes something else of a picture than one RGB picture",
                "use a checkpoint of fixed resolution",
            )
        shapes.add(images[0].shape[1:])
    height, width = next(iter(shapes))
    if len(shapes) > 1 or height != width:
        setting = "crop_size" if getattr(processor, "do_center_crop", False) else "size"
        _refuse(
            file, f"{setting}: {getattr(processor, setting)} makes no square of one size", "set one height and width"
        )
    return height


def _normalisation(file: Path, processor: Any) -> tuple[Triple, Triple]:
    """Mean and deviation of values over 255, whatever the factor that theirs are scaled by."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else ([0.0] * 3, [1.0] * 3)
    for name, value in {"image_mean": mean, "image_std": std}.items():
        if np.shape(value) != (3,) or not np.all(np.isfinite(value)):
            _refuse(file, f"{name}: {value} is not one number for each colour", "give three")
    if factor <= 0 or min(std) <= 0:
        name, value = ("rescale_factor", factor) if factor <= 0 else ("image_std", std)
        _refuse(file, f"{name}: {value} is not positive", "give what the tower was trained with")
    scale = 1.0 if np.isclose(factor * 255, 1) else factor * 255
    return tuple(float(x) / scale for x in mean), tuple(float(x) / scale for x in std)


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0]


def _refuse(file: Path, what: str, mend: str) -> NoReturn:
    raise UserError(f"{file}: {what}; {mend}") from None
