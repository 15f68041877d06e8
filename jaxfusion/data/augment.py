"""Augmentations, written as a short string: `config.data.augment = "crop(0.8)|flip|colour(0.1)"`.

Operations are applied from left to right to a picture as it is in its file, before it is resized. What is random in
them is drawn once a visit, in shares of the picture's sides, so all pictures of a visit, and so all frames of a video,
are changed alike. The form is that of big_vision's preprocessing strings.
"""

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from jaxfusion.errors import UserError

Change = Callable[[Image.Image], Image.Image]

CALL = re.compile(r"\s*(\w+)\s*(?:\(([^()]*)\))?\s*")
# The most that a crop's proportions may differ from the picture's, either way, as in Szegedy et al. 2015.
PROPORTIONS = math.log(4 / 3)
# The same of an erased rectangle.
ERASED = math.log(2)


@dataclass(frozen=True)
class Drawn:
    """What becomes of a visit's pictures. least: the smallest share of a side that is left of one."""

    changes: tuple[Change, ...]
    least: float = 1.0

    def __call__(self, image: Image.Image) -> Image.Image:
        """image: 8-bit RGB."""
        for change in self.changes:
            image = change(image)
        return image

    def of_pixels(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "H W 3"]:
        return np.array(self(Image.fromarray(pixels)))


# --- what there is ----------------------------------------------------------------------------------------------------


def _crop(rng: np.random.Generator, area: float) -> tuple[Change, float]:
    """A rectangle of at least this share of the picture, of nearly its proportions, anywhere in it."""
    share = rng.uniform(area, 1)
    most = min(PROPORTIONS, math.log(1 / share))  # beyond this one of its sides would be longer than the picture's
    stretch = math.exp(rng.uniform(-most, most) / 2)
    sides = min(math.sqrt(share) * stretch, 1), min(math.sqrt(share) / stretch, 1)
    return partial(_cropped, sides=sides, at=tuple(rng.uniform(size=2))), min(sides)


def _cropped(image: Image.Image, sides: tuple[float, float], at: tuple[float, float]) -> Image.Image:
    left, top, width, height = _rectangle(image, sides, at)
    return image.crop((left, top, left + width, top + height))


def _flip(rng: np.random.Generator, probability: float) -> Change:
    return _flipped if rng.uniform() < probability else _same


def _flipped(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def _colour(rng: np.random.Generator, strength: float) -> Change:
    """Brightness, contrast and saturation, each times up to 1 + strength or 1 - strength."""
    return partial(_coloured, factors=tuple(rng.uniform(1 - strength, 1 + strength, 3)))


def _coloured(image: Image.Image, factors: tuple[float, float, float]) -> Image.Image:
    kinds = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color
    for kind, factor in zip(kinds, factors, strict=True):
        image = kind(image).enhance(factor)
    return image


def _grey(rng: np.random.Generator, probability: float) -> Change:
    return _greyed if rng.uniform() < probability else _same


def _greyed(image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def _rotate(rng: np.random.Generator, degrees: float) -> Change:
    return partial(_rotated, degrees=rng.uniform(-degrees, degrees))


def _rotated(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=_mean(image)) if degrees else image


def _shift(rng: np.random.Generator, share: float) -> Change:
    """By up to this share of each side."""
    return partial(_shifted, by=tuple(rng.uniform(-share, share, 2)))


def _shifted(image: Image.Image, by: tuple[float, float]) -> Image.Image:
    shifted = Image.new("RGB", image.size, _mean(image))
    shifted.paste(image, (round(by[0] * image.width), round(by[1] * image.height)))
    return shifted


def _erase(rng: np.random.Generator, area: float) -> Change:
    """A rectangle of up to this share of the picture (Zhong et al. 2020; DeVries & Taylor 2017)."""
    side, stretch = math.sqrt(rng.uniform(0, area)), math.exp(rng.uniform(-ERASED, ERASED) / 2)
    sides = min(side * stretch, 1), min(side / stretch, 1)
    return partial(_erased, sides=sides, at=tuple(rng.uniform(size=2)))


def _erased(image: Image.Image, sides: tuple[float, float], at: tuple[float, float]) -> Image.Image:
    if not all(sides):
        return image
    left, top, width, height = _rectangle(image, sides, at)
    erased = image.copy()
    erased.paste(_mean(image), (left, top, left + width, top + height))
    return erased


def _same(image: Image.Image) -> Image.Image:
    return image


def _rectangle(image: Image.Image, sides: tuple[float, float], at: tuple[float, float]) -> tuple[int, int, int, int]:
    """Left, top, width and height. sides: as shares. at: where, as shares of what is left beside it."""
    width, height = (max(round(side * whole), 1) for side, whole in zip(sides, image.size, strict=True))
    return round(at[0] * (image.width - width)), round(at[1] * (image.height - height)), width, height


def _mean(image: Image.Image) -> tuple[int, ...]:
    """The colour of what comes from beyond the picture, which so adds no edge of its own where that is possible."""
    return image.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))


class Operation(NamedTuple):
    """draw: from a random generator and a strength. low, high: of the strength. default: where none is given.
    same: the strength that changes nothing."""

    draw: Callable[[np.random.Generator, float], Change | tuple[Change, float]]
    low: float
    high: float
    default: float | None
    same: float


OPERATIONS = {
    "crop": Operation(_crop, 0.01, 1, None, 1),
    "flip": Operation(_flip, 0, 1, 0.5, 0),
    "colour": Operation(_colour, 0, 1, None, 0),
    "grey": Operation(_grey, 0, 1, 0.2, 0),
    "rotate": Operation(_rotate, 0, 180, None, 0),
    "shift": Operation(_shift, 0, 1, None, 0),
    "erase": Operation(_erase, 0, 1, None, 0),
}


# --- from a string ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Augment:
    """calls: operations' names and their strengths, in order."""

    calls: tuple[tuple[str, float], ...]

    def draw(self, rng: np.random.Generator) -> Drawn:
        """Of the generator as many numbers are taken always, whatever they turn out to be."""
        changes, least = [], 1.0
        for name, strength in self.calls:
            change = OPERATIONS[name].draw(rng, strength)
            if isinstance(change, tuple):
                change, share = change
                least *= share
            changes.append(change)
        return Drawn(tuple(changes), least)


@lru_cache
def parse(text: str) -> Augment:
    """From "crop(0.8)|flip" and the like; "" is none. Raises UserError, which names the operation and the mend."""
    if not text.strip():
        return Augment(())
    return Augment(tuple(_call(part) for part in text.split("|")))


def _call(text: str) -> tuple[str, float]:
    setting = "config.data.augment"
    match = CALL.fullmatch(text)
    if not match:
        raise UserError(f"{setting}: {text!r} is no operation; write them as in 'crop(0.8)|flip|colour(0.1)'")
    name, value = match[1], match[2]
    if name not in OPERATIONS:
        near = difflib.get_close_matches(name, OPERATIONS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(OPERATIONS)}"
        raise UserError(f"{setting}: there is no operation {name!r}; {hint}")
    operation = OPERATIONS[name]
    between = f"a number from {operation.low:g} to {operation.high:g}, where {operation.same:g} changes nothing"
    if value is None or not value.strip():
        if operation.default is None:
            raise UserError(f"{setting}: {name} needs {between}, as in {name}({_example(operation):.2g})")
        return name, operation.default
    try:
        strength = float(value)
    except ValueError:
        strength = math.nan
    if not operation.low <= strength <= operation.high:
        raise UserError(f"{setting}: {name}({value}): it takes {between}; correct it")
    return name, strength


def _example(operation: Operation) -> float:
    return operation.same + 0.1 * (operation.high - operation.low) * (-1 if operation.same else 1)
