"""The chat page: its files, in `web/`, and what a browser lets them do.

What must hold: the page loads nothing from elsewhere and runs no script but its own files, so a text that a model
writes could not run, or send anything, even if it became mark-up.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

WEB = Path(__file__).parent / "web"
PAGE = "chat.html"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
FILES = sorted(file for file in WEB.iterdir() if file.suffix in MEDIA_TYPES)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[Route]:
    """The page at `/`, and the files that it names beside it."""
    return [Route("/" if file.name == PAGE else f"/{file.name}", _sender(file)) for file in FILES]


def _sender(file: Path) -> Callable[[Request], Awaitable[Response]]:
    async def send(_: Request) -> Response:
        return FileResponse(file, media_type=MEDIA_TYPES[file.suffix], headers=HEADERS)

    return send
