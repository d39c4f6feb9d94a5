"""Runs the compiler without blocking the terminal."""

import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lifecycle.core.progress import Progress
from lifecycle.planning.chips import GIB
from lifecycle.planning.compiled.compilation import Compilation
from lifecycle.planning.compilers import Compiler

if TYPE_CHECKING:
    from jax.stages import Lowered

_NEEDS = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM")
_UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}


def compile_program(
    lowered: "Lowered", options: Mapping[str, str], compiler: Compiler, progress: Progress
) -> Compilation:
    """Compiles for the devices that the program was lowered for.

    A program that does not fit is a result too; any other compiler error is raised.
    """
    from jax.errors import JaxRuntimeError

    started = time.monotonic()
    try:
        compiled = in_thread(lambda: lowered.compile(compiler_options=dict(options)), progress)
    except JaxRuntimeError as error:
        needs = _NEEDS.search(str(error))
        if needs is None:
            raise
        size = int(float(needs[1]) * _UNITS[needs[2]])
        return Compilation(None, size, 0, 0, 0, time.monotonic() - started)
    stats = compiled.memory_analysis()
    assert stats is not None, f"{compiler.name} says what its programs take"
    return Compilation(
        module=compiled.as_text(),
        peak_bytes=compiler.peak_bytes(stats),
        argument_bytes=stats.argument_size_in_bytes,
        code_bytes=stats.generated_code_size_in_bytes,
        host_bytes=stats.host_argument_size_in_bytes + stats.host_temp_size_in_bytes,
        compile_s=time.monotonic() - started,
    )


def in_thread[T](work: Callable[[], T], progress: Progress) -> T:
    """Runs `work` in a thread and reports the seconds elapsed.

    The main thread waits in Python, so Ctrl-C ends the program at once instead of after minutes of compilation.
    """
    box: dict[str, Any] = {}

    def run() -> None:
        try:
            box["result"] = work()
        except BaseException as error:  # re-raised in the main thread, whatever it is
            box["error"] = error

    started = time.monotonic()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.5)
        progress.update(int(time.monotonic() - started))
    if "error" in box:
        raise box["error"]
    return box["result"]
