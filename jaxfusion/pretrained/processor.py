"""The image processor's file of an export: what transformers makes of a picture is what the model was run on."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jaxfusion.config.model import ModelConfig, Vision

FILES = ("preprocessor_config.json", "processor_config.json")  # the second has the settings within, if at all
TILING = ("Idefics3", "SmolVLM")  # image processors that cut a picture into tiles unless told not to
# Of files that name none: transformers goes by the model then, and a tower's file may come to stand in another's.
KINDS = {
    "clip_vision_model": "CLIPImageProcessor",
    "siglip_vision_model": "SiglipImageProcessor",
    "dinov2": "BitImageProcessor",
    "vit": "ViTImageProcessor",
}


def processor_files(files: Mapping[str, bytes], vision: Vision | None, model_type: str) -> dict[str, bytes]:
    """Those of a checkpoint's files that say how it takes pictures, made to say what is done here: one tile an image.

    files:      the checkpoint's, by name.
    vision:     the tower; where there is no file for it, one is written of its size, mean and deviation.
    model_type: of the tower, or of a whole model; for the latter no file is made up.
    """
    found = {name: json.loads(files[name]) for name in FILES if name in files}
    if vision is None:
        return {name: files[name] for name in found}
    separate, within = found.get(FILES[0]), found.get(FILES[1], {}).get("image_processor")
    if not separate and not within:
        return {FILES[0]: _bytes(_plain(vision))} if model_type in (*KINDS, "resnet") else {n: files[n] for n in found}
    for settings in filter(None, (separate, within)):
        if not {"image_processor_type", "feature_extractor_type"} & settings.keys() and model_type in KINDS:
            settings["image_processor_type"] = KINDS[model_type]
        if "do_image_splitting" in settings or settings.get("image_processor_type", "").startswith(TILING):
            settings["do_image_splitting"] = False
    return {name: _bytes(settings) for name, settings in found.items()}


def alone(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The image processor in a file of its own, for a model whose processor is another one."""
    settings = json.loads(files.get(FILES[0], b"null")) or json.loads(files[FILES[1]])["image_processor"]
    return {FILES[0]: _bytes(settings)}


def as_loaded(config: Any, theirs: Mapping[str, Any], files: Mapping[str, bytes], resizes: bool = True) -> Any:
    """A config as loading the directory gives it: fitted to the pictures that its image processor makes.

    config: read from `theirs`, the config.json. resizes: whether transformers' tower takes pictures of another size.
    """
    from jaxfusion.pretrained.pixels import fit, read_pixels  # which needs Pillow

    with tempfile.TemporaryDirectory() as directory:
        for name, content in {**files, "config.json": _bytes(theirs)}.items():
            Path(directory, name).write_bytes(content)
        pixels = read_pixels(Path(directory), theirs["model_type"])
    if pixels is not None and not resizes:
        pixels = replace(pixels, image_size=_tower(config).image_size)
    return fit(config, pixels)


def _tower(config: ModelConfig | Vision) -> Vision:
    return config.vision if isinstance(config, ModelConfig) else config


def _plain(vision: Vision) -> dict[str, Any]:
    """Of a tower whose pictures are resized as any are here, without regard to their proportions."""
    side = {"height": vision.image_size, "width": vision.image_size}
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side,
        "resample": 3,
        "do_center_crop": True,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(vision.mean),
        "image_std": list(vision.std),
    }


def _bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
