"""SIGTERM in a job: JAX's preemption service has it where all processes stop at one step, else each process itself.

The service sets a handler in C when a job begins. It only takes note, for who asks after each step; a stage that does
not ask would run on until SIGKILL. So Python's handler is put back, and the service's is set while somebody listens.
The `signal` module cannot set a handler that is not Python's; CPython's `PyOS_getsig` and `PyOS_setsig` can.
"""

import ctypes
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager

_get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int)(("PyOS_getsig", ctypes.pythonapi))
_set = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)(("PyOS_setsig", ctypes.pythonapi))
_of_service: list[int | None] = []  # its handler, once a job has begun


def set_aside() -> None:
    """Puts back the handler that Python had before the service set its own. Only the main thread can."""
    if threading.current_thread() is threading.main_thread():
        _of_service[:] = [_get(signal.SIGTERM)]
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # Python does not know of the service's


@contextmanager
def listening() -> Generator[None]:
    """The service takes SIGTERM inside the block."""
    if not _of_service or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    _set(signal.SIGTERM, _of_service[0])
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
