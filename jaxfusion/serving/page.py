"""The chat page: files that a browser asks for, and that talk to the server as any other client does."""

from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

FILES = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}

# Whatever people or a model say on it, the page runs nothing but its own files, makes no text into HTML (trusted
# types), asks nobody but this server, and shows up within no other page.
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """index.html at /, the others at /static/NAME: those that are there now, so no request ever names a file."""
    return [
        Route(
            "/" if file.name == "index.html" else f"/static/{file.name}",
            partial(_send, content=file.read_bytes(), media_type=TYPES[file.suffix]),
            methods=["GET"],
            include_in_schema=False,
        )
        for file in sorted(FILES.iterdir())
        if file.suffix in TYPES
    ]


async def _send(_: Request, *, content: bytes, media_type: str) -> Response:
    return Response(content, headers=HEADERS, media_type=media_type)
