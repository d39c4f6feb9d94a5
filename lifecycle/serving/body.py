"""Reads a request's body: its content type, its size and the time that it takes are limited."""

import asyncio

from starlette.requests import ClientDisconnect, Request

from lifecycle.serving.errors import CLIENT_GONE, RequestError

MAX_BODY_BYTES = 4 << 20  # a million tokens of text
MAX_BODY_S = 60.0  # 4 MB at 70 kB/s


async def read_body(request: Request) -> bytes:
    """The JSON body: browsers send other content types to other origins without a preflight request.

    Raises `RequestError` for another content type, for a body that is too large or too slow, if the client closes the
    connection, and if the server stops while it waits for the rest.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError(415, "send the body with 'Content-Type: application/json'")
    reading = asyncio.ensure_future(_read(request))
    stopping = asyncio.ensure_future(request.app.state.stopping.wait())
    try:
        await asyncio.wait({reading, stopping}, timeout=MAX_BODY_S, return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            return reading.result()
        if stopping.done():
            raise RequestError(503, "the server is shutting down", code="unavailable", headers=CLOSE)
        raise RequestError(408, f"the body did not arrive within {MAX_BODY_S:.0f} seconds", headers=CLOSE)
    finally:
        reading.cancel()
        stopping.cancel()


CLOSE = {"Connection": "close"}  # the rest of the body is not read


async def _read(request: Request) -> bytes:
    body = bytearray()
    try:
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise RequestError(413, f"the body is larger than {MAX_BODY_BYTES} bytes", headers=CLOSE)
    except ClientDisconnect:
        raise RequestError(CLIENT_GONE, "the client closed the connection") from None
    return bytes(body)
