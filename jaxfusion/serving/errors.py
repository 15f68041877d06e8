"""Errors as OpenAI's interface writes them: {"error": {"message", "type", "param", "code"}}."""

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jaxfusion.errors import UserError
from jaxfusion.generation.engine import BusyError, ClosedError

TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(HTTPException):
    """What a request is answered with instead.

    status: of HTTP. param: the field of the request that is wrong. code: for programs to tell errors apart.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    @classmethod
    def of(cls, error: Exception) -> "ApiError":
        """Any error as one; what is neither the request's fault nor a state of the server tells nothing of itself."""
        match error:
            case ApiError():
                return error
            case BusyError():
                return cls(429, str(error), code="busy", headers={"Retry-After": "1"})
            case ClosedError():
                return cls(503, "the server takes no requests at present", headers={"Retry-After": "1"})
            case UserError():
                return cls(400, str(error))
            case RequestValidationError():
                return _invalid(error)
            case HTTPException():
                return cls(error.status_code, str(error.detail), headers=error.headers)
            case TimeoutError():
                return cls(504, "the answer took too long; ask for fewer tokens, or try again later", code="timeout")
        return cls(500, "the server failed; its log says how")

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        # In ASCII, as a name that a request gave may hold half a surrogate pair, which UTF-8 has no bytes for.
        return Response(json.dumps(self.body), self.status_code, self.headers, "application/json")


def add_handlers(app: FastAPI) -> None:
    """Every error of the app's goes out in OpenAI's format."""

    async def handle(_: Request, error: Exception) -> Response:
        return ApiError.of(error).response()

    for kind in (HTTPException, UserError, RequestValidationError, TimeoutError, Exception):
        app.add_exception_handler(kind, handle)


def _invalid(error: RequestValidationError) -> ApiError:
    """Of several errors the deepest: of the kinds that a field may have, it is the one that was meant."""
    worst = max(error.errors(), key=lambda one: len(one["loc"]))
    # Pydantic puts the kind it tried beside the field's name: messages, 0, content, list[...], 1, image_url, url.
    place = [str(part) for part in worst["loc"][1:] if isinstance(part, int) or str(part).isidentifier()]
    if worst["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON ({worst.get('ctx', {}).get('error', 'unreadable')})")
    if not place:
        return ApiError(400, "the body is not a JSON object; send one, with the header Content-Type: application/json")
    name = ".".join(place)[:200]
    said = "this server knows no such field" if worst["type"] == "extra_forbidden" else worst["msg"]
    return ApiError(400, f"{name}: {said}", param=name)
