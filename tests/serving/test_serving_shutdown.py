"""A server process of its own: SIGTERM lets the stream end, then the process exits with 0."""

import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from lifecycle.serving import server
from lifecycle.serving.app import create_app
from lifecycle.serving.config import ServeConfig
from lifecycle.testing.waiting import LIMIT_S

COMMAND = [sys.executable, "-m", "lifecycle.testing.server", "num_slots=2"]


@pytest.mark.slow
def test_sigterm_lets_requests_end_and_exits_cleanly() -> None:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        base = process.stdout.readline().strip()
        body: dict[str, object] = {"model": "tiny", "prompt": "a", "max_tokens": 500, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        with httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=LIMIT_S) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"completion_tokens": 500' in rest[-2]
        assert process.stdout.readline() == "closed\n"
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_sigterm_does_not_wait_for_an_upload() -> None:
    process = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().strip().removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=LIMIT_S) as client:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            client.sendall(f"{head}Expect: 100-continue\r\nContent-Length: 99\r\n\r\n".encode())
            assert client.recv(4096).startswith(b"HTTP/1.1 100")  # the server has begun to read
            client.sendall(b"{")
            process.send_signal(signal.SIGTERM)
            assert b"503" in client.recv(4096).splitlines()[0]
        assert process.stdout.readline() == "closed\n"
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()


def test_a_signal_that_comes_before_the_servers_own_handlers_are_there_ends_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Early(server._Server):
        def run(self, sockets: list[socket.socket] | None = None) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().run(sockets)

    monkeypatch.setattr(server, "_Server", Early)
    config = ServeConfig(port=0)
    with server.listen(config) as listener:
        server.serve(create_app({}, config), listener)
