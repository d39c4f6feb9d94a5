"""A server of OpenAI's chat API whose judge is a function of the question: it answers, fails and breaks as told."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from tests.web_server import QuietHandler, answering

type Say = Callable[[dict[str, Any]], tuple[int, Any]]  # a request's body -> status, and content or whole body


@contextmanager
def judging(say: Say) -> Generator[tuple[str, list[dict[str, Any]]]]:
    """The API's address, and the requests so far, each with its `authorization`."""
    asked: list[dict[str, Any]] = []

    class Handler(QuietHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"authorization": self.headers.get("Authorization"), "path": self.path})
            status, content = say(body)
            whole = {"choices": [{"message": {"content": content}}]} if isinstance(content, str) else content
            data = json.dumps(whole).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with answering(Handler) as address:
        yield f"{address}/v1", asked
