"""Who may ask, and how much: checked before a request's body is read."""

import asyncio
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jaxfusion.serving.errors import ApiError

# What tokenises for a client.
TOKENS = ("/tokenize", "/detokenize", "/tokenizer_info")
GUARDED = ("/v1/", *TOKENS)

# For a body to arrive whole.
BODY_SECONDS = 60

# All bodies that are in memory at once are no more than so many of the largest size.
BODIES = 16


class Limits:
    """Around an app: keys, the size of bodies and the time they take, and how many requests are under way at once.

    keys: any of which a guarded request has to bring, as `Authorization: Bearer KEY`; none: everybody may.
    """

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], max_bytes: int, max_requests: int) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]
        self._max_bytes, self._max_requests = max_bytes, max_requests
        self._requests = self._bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            return await self._app(scope, receive, send)
        try:
            self._check(Headers(scope=scope))
        except ApiError as error:
            return await error.response()(scope, receive, send)
        body = _Body(self, receive)
        self._requests += 1
        try:
            await self._app(scope, body.receive, send)
        finally:
            self._requests -= 1
            self._bytes -= body.size

    def _check(self, headers: Headers) -> None:
        given = headers.get("authorization", "").removeprefix("Bearer ").strip().encode("latin-1")
        # All are compared, each in the same time, so that time tells nothing.
        if self._keys and not sum(hmac.compare_digest(given, key) for key in self._keys):
            raise ApiError(401, "a wrong API key, or none; send Authorization: Bearer KEY", code="invalid_api_key")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()
        if self._requests >= self._max_requests:
            raise ApiError(429, f"{self._requests} requests are under way", code="busy", headers={"Retry-After": "1"})

    def take(self, length: int, size: int) -> None:
        """So many bytes more of a body, which now has `size`. Raises ApiError where that is too much."""
        self._bytes += length
        if size > self._max_bytes:
            raise self._too_large()
        if self._bytes > BODIES * self._max_bytes:
            raise ApiError(429, "too much is being sent at once", code="busy", headers={"Retry-After": "1"})

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the request has more than {self._max_bytes:,} bytes", code="request_too_large")


class _Body:
    """What arrives of one request. size: bytes so far."""

    def __init__(self, limits: Limits, receive: Receive) -> None:
        self._limits, self._receive, self._whole, self.size = limits, receive, False, 0
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def receive(self) -> Message:
        """Raises ApiError for a body that is too large, or late."""
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {BODY_SECONDS} seconds") from None
        length = len(message.get("body", b""))
        self._whole, self.size = not message.get("more_body", False), self.size + length
        self._limits.take(length, self.size)
        return message
