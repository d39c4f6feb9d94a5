"""A server of a tiny random model as a process of its own: `python -m lifecycle.testing.server [serve.port=0 ...]`.

The model is called `tiny`; its answers never end by themselves, so their lengths are known. The first line of output
is the address; after SIGTERM or SIGINT it prints `closed`.
"""

import signal
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

from lifecycle.core.config import read_settings
from lifecycle.inference.engine import Engine
from lifecycle.inference.sampling import SamplingParams
from lifecycle.serving.app import create_app
from lifecycle.serving.choices import Served
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.server import listen, serve, url
from lifecycle.testing.models import SERVED, random_model

NAME = "tiny"


def main(settings: Sequence[str]) -> None:
    """Serves with these settings of `ServeConfig`, on any free port unless they name one."""
    config = read_settings(ServeConfig, ["port=0", *settings])
    model = random_model(defaults=SamplingParams(stop_ids=()), **SERVED)
    with Engine(model, config.num_slots, config.max_queue, config.max_seq_len, warm_up=True) as engine:
        app, listener = create_app({NAME: Served(engine)}, config), listen(config)
        print(url(listener), flush=True)
        serve(app, listener)
    print("closed", flush=True)


@contextmanager
def served(*settings: str, env: Mapping[str, str] | None = None) -> Generator[tuple[str, subprocess.Popen[str]]]:
    """The address and the process of such a server, which is stopped at the end."""
    command = [sys.executable, "-m", __name__, *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate()


if __name__ == "__main__":
    main(sys.argv[1:])
