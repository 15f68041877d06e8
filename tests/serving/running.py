"""A real server of a tiny random model, on a port of its own, in this process."""

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

import jaxfusion
from jaxfusion.config import Config, from_dict
from jaxfusion.models.vlm import Model, Params
from jaxfusion.serving.run import bind, make_server
from jaxfusion.serving.server import Server
from jaxfusion.text.trained import TrainedTokenizer
from tests.models.test_vlm import random_params

VISION = {"kind": "vgg", "image_size": 8, "stage_depths": [1, 1], "stage_widths": [4, 4]}
DECODER = {"kind": "transformer", "num_layers": 1, "num_heads": 2, "scan_layers": False}
SERVE = {"num_rows": 4, "num_positions": 160, "max_images": 4, "max_request_bytes": 2**20, "max_image_pixels": 10**6}


class Serving(NamedTuple):
    url: str
    server: Server
    model: Model
    params: Params


def tiny_model() -> tuple[Model, Params]:
    """Of bytes: most of what it says is no whole character."""
    text = {"vocab_size": 262, "max_positions": 160}
    settings = {"width": 16, "vision": VISION, "text_embedding": text, "decoder": DECODER}
    model = jaxfusion.build(from_dict(Config, {"model": settings}), TrainedTokenizer.train(["x"], 262))
    return model, random_params(model)


@contextmanager
def serving(
    model: Model, params: Params, *, generate: dict[str, Any] | None = None, **settings: Any
) -> Iterator[Serving]:
    """generate: of `config.generate`. settings: of `config.serve`."""
    config = from_dict(Config, {"serve": SERVE | settings, "generate": generate or {}})
    bound, ready = bind("127.0.0.1", 0), threading.Event()
    port = bound.getsockname()[1]
    server = make_server(model, params, config, "tiny", ready=ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    assert ready.wait(60)
    try:
        yield Serving(f"http://127.0.0.1:{port}", server.config.app.state.server, model, params)
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(pixels: np.ndarray) -> bytes:
    return saved(pixels, "PNG")


def saved(pixels: np.ndarray, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **settings)
    return buffer.getvalue()


def user(*parts: str | dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation of one message; a text that is a URL is a picture's."""

    def part(value: str) -> dict[str, Any]:
        if "://" in value or value.startswith("data:"):
            return {"type": "image_url", "image_url": {"url": value}}
        return {"type": "text", "text": value}

    return [{"role": "user", "content": [part(value) if isinstance(value, str) else value for value in parts]}]
