"""Work that is repeated in a thread while other work goes on."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager


@contextmanager
def repeated(work: Callable[[], None], every_s: float, name: str) -> Generator[None]:
    """Calls `work` every `every_s` seconds in a thread while the block runs; it must not raise."""
    stop = threading.Event()

    def repeat() -> None:
        while not stop.wait(every_s):
            work()

    thread = threading.Thread(target=repeat, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
