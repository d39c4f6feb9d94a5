"""A server of several processes: how process 0 leads the others, how these follow, and how each of them ends.

Process 0 answers HTTP. The others take its turns until it ends; asked to stop, they ask it, as it has the requests.
Where a process is lost, all end with `LOST_STATUS`, within `ENDING_S` even if a collective hangs.
"""

import os
import platform
import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from lifecycle.core.channel import Peer, connect
from lifecycle.core.distributed import process_index
from lifecycle.core.stopping import LOST_STATUS
from lifecycle.inference.adapters import BankSizes
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.drafters import drafter_for
from lifecycle.inference.following import UNLIMITED, Follower
from lifecycle.inference.hosts import Leader
from lifecycle.inference.runner import Runner
from lifecycle.inference.turns import Witness
from lifecycle.parallel.mesh import build_mesh
from lifecycle.serving.config import ServeConfig

ENDING_S = 8.0  # to answer the requests that are left with an error, and to end


def end_server() -> None:
    """Lets this process's server end, as a signal does: requests that run may end first."""
    os.kill(os.getpid(), signal.SIGTERM)


def _end_soon() -> None:
    """Ends this process if it has not ended by itself."""
    timer = threading.Timer(ENDING_S, os._exit, [LOST_STATUS])
    timer.daemon = True
    timer.start()


@contextmanager
def leading() -> Generator[Leader]:
    """Leads the other processes of the job while the block runs."""
    leader = Leader(connect(), on_lost=_end_soon, on_stop=end_server)
    try:
        yield leader
    except BaseException:
        leader.close(is_ok=False)
        raise
    leader.close(is_ok=True)


def follow(config: ServeConfig, find: Callable[[str], Path]) -> None:
    """Takes process 0's turns until it ends. Raises `JobError` if that is not in order."""
    mesh = build_mesh(config.mesh)

    def build(name: str, witness: Witness) -> Runner:
        bundle = find(name)
        model = load_bundle(bundle, mesh, config.weights, is_apart=True)
        limits = config.num_slots, UNLIMITED, config.max_seq_len
        return Runner(
            model,
            *limits,
            mesh=mesh,
            cache_tokens=config.cache_tokens,
            drafter=drafter_for(config.speculation, model, bundle, mesh, config.weights, config.max_seq_len),
            witness=witness,
            kv_cache=config.kv_cache,
            adapters=None if config.adapters is None else BankSizes(config.adapters.slots, config.adapters.rank),
        )

    (connection,) = connect()
    follower = Follower(connection, build, Peer(process_index(), platform.node()), _end_soon)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: follower.ask_to_stop())
    follower.run()
