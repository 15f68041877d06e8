"""Pictures of a flat colour, each known by it, and the captions that go with them."""

import io

import numpy as np
import pytest
from PIL import Image


def picture(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color_of(number)).save(buffer, kind)
    return buffer.getvalue()


def color_of(number: int) -> tuple[int, int, int]:
    return (number * 5 % 256, number * 11 % 256, 250 - number * 7 % 250)


@pytest.fixture(autouse=True)
def indexes(tmp_path, monkeypatch):
    """Kept where nobody else looks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def seen(record) -> list[tuple[int, int, int]]:
    """The colours of a record's pictures."""
    from jaxfusion.data.images import read_image

    return [tuple(np.asarray(read_image(entry))[0, 0].tolist()) for entry in record["images"]]
