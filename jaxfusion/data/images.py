"""Pictures as arrays: read them from files or bytes, resize them, and encode them as PNG.

Whatever the file holds (palette, 16 bits, CMYK, alpha, a camera held sideways), what comes out is upright 8-bit RGB.
"""

import io
import os
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxfusion.errors import UserError

# Only these decoders may see a file: others in Pillow start programs (EPS) or have few users to find their faults.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")


def read_image(
    source: str | os.PathLike | bytes,
    at_least: int | None = None,
    size: int | None = None,
    change: Callable[[Image.Image], Image.Image] | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Read a picture from a path, or from the bytes of an image file (PNG, JPEG, WebP, GIF, BMP, TIFF, PPM).

    16-bit grey is scaled to 8 bits, what is transparent is laid over white, and the EXIF rotation is carried out; of an
    animation the first frame is taken.

    at_least: pixels a side that are enough. A JPEG is then decoded at a half, a quarter or an eighth of its size, as
        far as neither side falls below that: its blocks of cosines give a smaller picture for less work than the whole.
        What `resize_image` makes of it differs by a few grey levels from what it makes of the whole picture.
    size: the side to resize to, as `resize_image` does it, with one copy of the pixels less.
    change: what else becomes of the upright 8-bit RGB picture, before it is resized.
    Raises `UserError`, naming the file, where it is missing, not an image, damaged,
    of a kind with no fixed range (32-bit), or so large (by its header, before decoding) that it could fill the memory.
    """
    name = f"the image ({len(source):,} bytes)" if isinstance(source, bytes) else f"the image {os.fspath(source)}"
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            if at_least is not None:
                image.draft(None, (at_least, at_least))  # does nothing for files of other kinds
            ImageOps.exif_transpose(image, in_place=True)
            rgb = to_rgb(image, name)
            rgb = change(rgb) if change else rgb
            return np.array(rgb if size is None else _resized(rgb, (size, size)))
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist; check the path") from error
    except (PermissionError, IsADirectoryError) as error:
        raise UserError(f"{name} can't be opened: {error.strerror}; give a file that can be read") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{name} is not an image of a known kind; give one of {', '.join(FORMATS)}") from error
    except Image.DecompressionBombError as error:
        limit = 2 * Image.MAX_IMAGE_PIXELS
        raise UserError(f"{name} is enormous; make it smaller than {limit:,} pixels") from error
    # A damaged file makes Pillow's decoders fail in many ways: OSError, SyntaxError, ValueError, struct.error, ...
    except Exception as error:
        raise UserError(f"{name} is truncated or damaged ({error}); replace it with a whole one") from error


def to_rgb(image: Image.Image, name: str = "the image") -> Image.Image:
    """Any picture as 8-bit RGB, as `read_image` gives it; its rotation stays. name: for the error."""
    if image.mode in SIXTEEN_BIT:
        image = _to_eight_bits(image, name)
    elif image.mode == "F":
        raise UserError(f"{name} holds floating-point values with no fixed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Scale 0..65535 to 0..255, rounding: Pillow's own conversion would clip instead."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"{name} holds values beyond 16 bits; save it with 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def resize_image(image: UInt8[np.ndarray, "h w 3"], size: int | tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
    """Resize to `size` (a side, or height and width) by antialiased bicubic interpolation.

    The whole picture stays in view: its proportions give way where they differ from those of `size`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if image.shape[:2] == (height, width):
        return image
    return np.array(_resized(Image.fromarray(image), (width, height)))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Encode as PNG, quickly rather than small."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
