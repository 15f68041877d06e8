"""Images of every kind are written here pixel by pixel and read back as the same upright 8-bit RGB."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxfusion.data.images import encode_png, read_image, resize_image
from jaxfusion.errors import UserError

RGB = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [200, 150, 100], [7, 7, 7]]], np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_is_read_exactly_from_bytes_and_from_a_path(kind, tmp_path):
    data = encoded(Image.fromarray(RGB), kind)
    path = tmp_path / "picture"
    path.write_bytes(data)
    for source in (data, path, str(path)):
        image = read_image(source)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_kinds(kind):
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    np.testing.assert_allclose(read_image(encoded(Image.fromarray(flat), kind)), flat, atol=4)


def test_bilevel_and_grey():
    bits = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    np.testing.assert_array_equal(read_image(encoded(bits)), grey([[0, 255, 255]]))
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(np.uint8([[0, 9, 250]])))), grey([[0, 9, 250]]))


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette(kind):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 128, 0, 1, 2, 3])
    image.putdata([2, 0, 1])
    np.testing.assert_array_equal(read_image(encoded(image, kind)), [[[1, 2, 3], [255, 0, 0], [0, 128, 0]]])


def test_transparent_palette_entry_becomes_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 128, 0])
    image.putdata([0, 1])
    np.testing.assert_array_equal(read_image(encoded(image, transparency=0)), [[[255, 255, 255], [0, 128, 0]]])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind):
    values = np.array([[0, 257, 128 * 257, 40_000, 65535]], np.uint16)
    expected = grey(np.rint(values / 257))
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(values), kind)), expected)


def test_sixteen_bit_grey_in_a_big_endian_tiff():
    values = np.array([[0, 300, 65535]], np.uint16)
    entries = [(256, 3, 1, 3), (257, 3, 1, 1), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, values.nbytes)]
    data = b"MM\x00\x2a" + struct.pack(">I", 14) + values.astype(">u2").tobytes() + struct.pack(">H", len(entries))
    for tag, kind, count, value in entries:
        data += struct.pack(">HHI", tag, kind, count) + struct.pack(">HH" if kind == 3 else ">I", *_field(kind, value))
    np.testing.assert_array_equal(read_image(data + bytes(4)), grey([[0, 1, 255]]))


def _field(kind: int, value: int) -> tuple[int, ...]:
    return (value, 0) if kind == 3 else (value,)


def test_sixteen_bit_colour():
    values = np.array([[[0, 65535, 257 * 100], [257 * 3, 257 * 4, 257 * 5]]], np.uint16)
    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    image = read_image(png((2, 1), bit_depth=16, colour_type=2, data=zlib.compress(rows)))
    np.testing.assert_array_equal(image, [[[0, 255, 100], [3, 4, 5]]])


def test_cmyk():
    image = Image.new("CMYK", (4, 1))
    image.putdata([(0, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255), (0, 0, 255, 0)])
    expected = [[[255, 255, 255], [255, 0, 0], [0, 0, 0], [255, 255, 0]]]
    np.testing.assert_array_equal(read_image(encoded(image, "TIFF")), expected)
    flat = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    jpeg = read_image(encoded(flat, "JPEG", quality=95))  # Adobe's JPEGs hold CMYK inverted
    np.testing.assert_allclose(jpeg, np.full((16, 16, 3), (255, 0, 0)), atol=8)


def test_alpha_is_laid_over_white():
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [100, 50, 0, 128]]], np.uint8)
    image = read_image(encoded(Image.fromarray(pixels)))
    expected = pixels[..., :3] * (pixels[..., 3:] / 255) + 255 * (1 - pixels[..., 3:] / 255)
    np.testing.assert_allclose(image, expected, atol=1)
    grey_alpha = Image.merge("LA", [Image.new("L", (1, 1), 40), Image.new("L", (1, 1), 0)])
    np.testing.assert_array_equal(read_image(encoded(grey_alpha)), grey([[255]]))
    keyed = Image.fromarray(RGB)
    np.testing.assert_array_equal(read_image(encoded(keyed, transparency=(255, 0, 0)))[0, 0], [255, 255, 255])


# What was done to the upright picture when it was stored, by EXIF orientation (the standard's table).
STORED = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(x, 2).swapaxes(0, 1),
    8: lambda x: np.rot90(x, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_rotation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](RGB)))
    np.testing.assert_array_equal(read_image(encoded(stored, "PNG", exif=exif)), RGB)
    np.testing.assert_array_equal(read_image(encoded(stored, "TIFF", exif=exif)), RGB)


def test_exif_rotation_of_sixteen_bits():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.array([[0, 257 * 9]], np.uint16))
    np.testing.assert_array_equal(read_image(encoded(image, exif=exif)), grey([[0], [9]]))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(size: tuple[int, int], bit_depth: int, colour_type: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", *size, bit_depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
BAD = {
    "truncated.png": (encoded(Image.fromarray(NOISE))[:5_000], "truncated or damaged"),
    "truncated.jpg": (encoded(Image.fromarray(NOISE), "JPEG")[:1_000], "truncated or damaged"),
    "truncated.tif": (encoded(Image.fromarray(NOISE), "TIFF", compression="tiff_lzw")[:2_000], "damaged|not an image"),
    "header.png": (encoded(Image.fromarray(NOISE))[:12], "not an image"),
    "empty.png": (b"", "not an image"),
    "notes.txt": (b"not a picture at all", "not an image"),
    "script.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n", "not an image"),
    "bomb.png": (png((20_000, 20_000), bit_depth=8, colour_type=2, data=b""), "enormous"),
    "float.tif": (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point"),
    "int32.tif": (encoded(Image.fromarray(np.full((2, 2), 70_000, np.int32)), "TIFF"), "beyond 16 bits"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named_with_the_mend(name, tmp_path):
    data, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_image(path)
    assert name in str(caught.value) and "\n" not in str(caught.value) and ";" in str(caught.value)
    with pytest.raises(UserError, match=message):
        read_image(data)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"scene\.png does not exist"):
        read_image(tmp_path / "scene.png")
    with pytest.raises(UserError, match="can't be opened"):
        read_image(tmp_path)


def test_resize_keeps_flat_colours_and_averages_fine_detail():
    flat = np.full((7, 9, 3), (12, 130, 250), np.uint8)
    np.testing.assert_array_equal(resize_image(flat, (4, 30)), np.full((4, 30, 3), (12, 130, 250)))
    # Without antialiasing, every eighth pixel of a checkerboard would give pure black or white.
    board = grey(np.indices((64, 64)).sum(axis=0) % 2 * 255)
    np.testing.assert_allclose(resize_image(board, 8), 127, atol=2)


def test_resize_takes_height_first_and_leaves_a_fitting_image_alone():
    assert resize_image(RGB, 5).shape == (5, 5, 3)
    assert resize_image(RGB, (8, 4)).shape == (8, 4, 3)
    np.testing.assert_array_equal(resize_image(RGB, (2, 3)), RGB)
    np.testing.assert_array_equal(read_image(encode_png(NOISE), size=5), resize_image(NOISE, 5))


def test_png_round_trip():
    np.testing.assert_array_equal(read_image(encode_png(NOISE)), NOISE)


def test_a_large_jpeg_is_decoded_no_larger_than_it_must_be():
    columns, rows = np.meshgrid(np.linspace(0, 255, 200), np.linspace(0, 255, 160))
    pixels = np.stack([columns, rows, 128 + 100 * np.sin(columns / 20)], axis=-1).astype(np.uint8)
    data = encoded(Image.fromarray(pixels), "JPEG", quality=95)
    for at_least, shape in ((None, (160, 200)), (161, (160, 200)), (80, (80, 100)), (41, (80, 100)), (40, (40, 50))):
        assert read_image(data, at_least).shape == (*shape, 3)
    whole, scaled = (resize_image(read_image(data, at_least), 40).astype(int) for at_least in (None, 40))
    assert np.abs(whole - scaled).max() <= 6
    np.testing.assert_array_equal(read_image(encoded(Image.fromarray(pixels)), 40), pixels)  # a PNG stays whole
