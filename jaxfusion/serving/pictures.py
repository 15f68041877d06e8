"""Pictures in requests: from a data URL, or a host that may be asked, to pixels, and nothing larger than allowed."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from jaxfusion.config.run import ServeConfig
from jaxfusion.data.data_url import PREFIX, content_of
from jaxfusion.data.images import read_image
from jaxfusion.errors import UserError
from jaxfusion.serving.errors import ApiError
from jaxfusion.serving.remote import fetch

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")

# Each scan of a JPEG passes over the whole picture, however few bytes it has. Encoders write about ten, and a
# thumbnail's come on top.
MOST_SCANS = 100


def read_picture(url: str, settings: ServeConfig, param: str) -> UInt8[np.ndarray, "H W 3"]:
    """The picture that an `image_url` names. What it is, its bytes say, and no name.

    param: the field, for the errors.
    Raises ApiError for a URL of another kind, for one that may not be asked, and what `decode` refuses.
    """
    if prefix := PREFIX.match(url):
        length = len(url) - prefix.end()
        if length > -(-settings.max_image_bytes // 3) * 4:
            raise _too_large(settings, param)
        try:
            data = content_of(url)
        except UserError as error:
            raise ApiError(400, f"{param}: {error}", param=param) from None
    elif url[:8].lower() == "https://" and settings.image_hosts:
        data = fetch(url, settings.image_hosts, settings.max_image_bytes, param)
    else:
        hosts = f", or a https URL of {', '.join(settings.image_hosts)}" if settings.image_hosts else ""
        if url[:4].lower() == "http" and not hosts:
            hosts = "; this server fetches none by URL, which its serve.image_hosts would allow"
        raise ApiError(400, f"{param}: give the picture as data:image/png;base64,...{hosts}", param=param)
    return decode(data, settings, param)


def decode(data: bytes, settings: ServeConfig, param: str) -> UInt8[np.ndarray, "H W 3"]:
    """A file's pixels; of an animation the first picture.

    Raises ApiError for another kind of file than PNG, JPEG, WebP or GIF, for a damaged one, and for one with more
    bytes, pixels or passes over them than a picture has.
    """
    if len(data) > settings.max_image_bytes:
        raise _too_large(settings, param)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads the header alone
            (width, height), kind = image.size, image.format
    except Exception:  # Pillow fails in many ways on what is no picture
        raise ApiError(400, f"{param}: not a picture; give one of {', '.join(FORMATS)}", param=param) from None
    if width * height > settings.max_image_pixels:
        raise ApiError(
            400,
            f"{param}: the picture has {width} x {height} pixels, and {settings.max_image_pixels:,} are allowed",
            param=param,
        )
    if kind == "JPEG" and data.count(b"\xff\xda") > MOST_SCANS:
        raise ApiError(400, f"{param}: the JPEG has more than {MOST_SCANS} scans; save it anew", param=param)
    try:
        return read_image(data)
    except UserError as error:
        raise ApiError(400, f"{param}: {error}", param=param) from None


def _too_large(settings: ServeConfig, param: str) -> ApiError:
    return ApiError(400, f"{param}: the picture has more than {settings.max_image_bytes:,} bytes", param=param)
