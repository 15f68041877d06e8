"""Whatever is sent, the answer is a 4xx in OpenAI's format, and the server goes on."""

import http.client
import io
import json

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from jaxfusion.serving.protocol import MOST_PROMPTS, DetokeniseRequest, TextRequest
from tests.serving.running import data_url, png, saved, user

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def bomb() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    return buffer.getvalue()


def body(**settings) -> bytes:
    return json.dumps({"messages": user("x"), "max_tokens": 1} | settings).encode()


def picture(data: bytes, kind: str = "image/png") -> bytes:
    return body(messages=user("x", data_url(data, kind)))


def url(text: str) -> bytes:
    return body(messages=user({"type": "image_url", "image_url": {"url": text}}))


BODIES = {
    "nothing": b"",
    "malformed JSON": b'{"messages": [',
    "not UTF-8": b'{"messages": "\xff\xfe"}',
    "deeply nested": b"[" * 200_000,
    "nested in a field": b'{"messages": ' + b"[" * 100_000,
    "a list": b"[]",
    "null": b"null",
    "not a number": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "beyond all numbers": b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
    "a number of many digits": b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
    "half a surrogate pair": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "a surrogate in a name": b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1}',
    "no messages": body(messages=[]),
    "messages of the wrong type": body(messages="x"),
    "content of the wrong type": body(messages=[{"role": "user", "content": 5}]),
    "a part of no type": body(messages=user({"text": "x"})),
    "a role of nobody": body(messages=[{"role": "root", "content": "x"}]),
    "a picture in a reply": body(messages=[{"role": "assistant", "content": user(data_url(png(NOISE)))[0]["content"]}]),
    "a number as text": body(temperature="0.5"),
    "a truth as a number": body(n=True),
    "a fraction of a token": body(max_tokens=1.5),
    "no tokens": body(max_tokens=0),
    "a huge top_k": body(top_k=2**31),
    "a huge seed": body(seed=2**63),
    "too many answers": body(n=1000),
    "too many stops": body(stop=["x"] * 1000),
    "over the context": body(messages=user("word " * 60)),
    "far over the context": body(messages=user("word " * 10_000)),
    "no room for the answer": body(max_tokens=10**9),
    "too many images": body(messages=user(*[data_url(b"x")] * 10_000)),
    "over the size": body(messages=user("x" * 2**20)),
    "a decompression bomb": picture(bomb()),
    "a truncated picture": picture(png(NOISE)[:2000]),
    "the first bytes of a picture": picture(png(NOISE)[:20]),
    "an empty picture": picture(b""),
    "SVG as PNG": picture(SVG),
    "SVG": picture(SVG, "image/svg+xml"),
    "HTML as PNG": picture(b"<!doctype html><img src=x onerror=alert(1)>"),
    "a TIFF": picture(saved(NOISE, "TIFF")),
    "PostScript": picture(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "a JPEG of many scans": picture(saved(NOISE, "JPEG") + b"\xff\xda" * 101),
    "not base64": url("data:image/png;base64,!!!!"),
    "base64 of other letters": url("data:image/png;base64,ÄÖÜ="),
    "not in base64 at all": url("data:image/svg+xml,<svg/>"),
    "many errors": b'{"messages": [' + b"1," * 400_000 + b"1]}",
    "many fields": b"{" + b",".join(b'"%d":0' % number for number in range(80_000)) + b"}",
    "a long name": b'{"messages": [{"role": "user", "content": "x"}], "' + b"n" * 500_000 + b'": 1}',
    "a model of a long name": body(model="m" * 10_000),
    "a path": url("/etc/passwd"),
    "a path upwards": url("../../../../etc/passwd"),
    "a file's URL": url("file:///etc/passwd"),
    "a private address": url("http://169.254.169.254/latest/meta-data"),
    "this server": url("http://127.0.0.1/v1/models"),
    "a host that is not named": url("https://example.com/a.png"),
    "another scheme": url("gopher://localhost:70/x"),
}


TOKENS = {
    "too many": [5] * (2**17 + 1),
    "wrong ones": [-1] * 2**17,
    "nothings": [None] * 2**17,
    "lists of wrong ones": [[-1] * 5000] * 40,
}


def send(served, data: bytes, path: str = "/v1/chat/completions", method: str = "POST", **headers: str):
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, data, {"Content-Type": "application/json"} | headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_request_is_told_so(served, name):
    status, answer = send(served, BODIES[name])
    assert status == (413 if name == "over the size" else 400), answer
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"]
    assert "\n" not in answer["error"]["message"] and len(answer["error"]["message"]) < 400
    assert send(served, body())[0] == 200


@pytest.mark.parametrize("name", TOKENS)
def test_so_are_tokens_and_few_of_many_that_are_wrong(served, name):
    """Each error is an object, made while all others wait."""
    for kind, path, field in ((TextRequest, "/v1/completions", "prompt"), (DetokeniseRequest, "/detokenize", "tokens")):
        wrong = {field: TOKENS[name]}
        with pytest.raises(ValidationError) as error:
            kind.model_validate(wrong)
        assert error.value.error_count() < 2 * MOST_PROMPTS
        status, answer = send(served, json.dumps(wrong).encode(), path)
        assert (status, len(answer["error"]["message"]) < 400) == (400, True), answer


def test_tokens_beyond_the_context_are_counted_before_they_are_looked_at(served, monkeypatch):
    monkeypatch.setattr("jaxfusion.serving.prompts.raw", None)
    status, answer = send(served, json.dumps({"prompt": [999] * 2**16}).encode(), "/v1/completions")
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/chat/completions", {}, 405),
        ("POST", "/v1/../../etc/passwd", {}, 404),
        ("POST", "/", {}, 405),
        ("GET", "/static/../app.py", {}, 404),
        ("POST", "/v1/chat/completions", {"Content-Type": "text/plain"}, 400),
        ("POST", "/v1/chat/completions", {"Content-Length": "999999999999"}, 413),
    ],
)
def test_so_is_a_wrong_path_or_header(served, method, path, headers, status):
    given, answer = send(served, body(), path, method, **headers)
    assert (given, answer["error"].keys()) == (status, {"message", "type", "param", "code"})
    assert send(served, body())[0] == 200


def test_a_body_that_says_nothing_of_its_size_is_cut_off(served):
    """In chunks, without a Content-Length."""
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=60)
    pieces = (b'"' + b"x" * 2**16 for _ in range(40))
    connection.request("POST", "/v1/completions", pieces, {"Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status in (400, 413)
    connection.close()
    assert send(served, body())[0] == 200
