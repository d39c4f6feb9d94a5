"""A server process of its own: SIGTERM lets the stream end, then the process exits with 0."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from serving_server import tiny_model
from lifecycle.inference.engine import Engine
from lifecycle.serving.app import create_app
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.job import Served
from lifecycle.serving.server import listen, serve, url

config = ServeConfig(port=0)
with Engine(tiny_model(), num_slots=2) as engine:
    app = create_app({"m": Served(engine)}, config)
    listener = listen(config)
    print(url(listener), flush=True)
    serve(app, listener)
print("closed", flush=True)
"""


def test_sigterm_lets_requests_end_and_exits_cleanly() -> None:
    here = str(Path(__file__).parent)
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, here], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        base = process.stdout.readline().strip()
        body = {"model": "m", "prompt": "a", "max_tokens": 2000, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        with httpx.stream("POST", f"{base}/v1/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"completion_tokens": 2000' in rest[-2]
        assert process.stdout.readline() == "closed\n"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
