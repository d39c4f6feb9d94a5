"""Asking the compiler: what does not fit, what fails, and what is heard meanwhile."""

import time
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from lifecycle.core.platform import compiler_options
from lifecycle.core.progress import Silent
from lifecycle.planning.compilers import TPU_COMPILER
from lifecycle.planning.programs.compiler import compile_program, in_thread

MESSAGE = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (608.00G) exceeds available HBM (95.73G)."
)


def failing(message: str, seen: dict[str, str] | None = None) -> Any:
    """A lowered program that the compiler rejects; `seen` gets the options."""

    def compile_(compiler_options: dict[str, str]) -> None:
        (seen if seen is not None else {}).update(compiler_options)
        raise jax.errors.JaxRuntimeError(message)

    return SimpleNamespace(compile=compile_)


def test_what_does_not_fit_is_a_compilation_with_what_it_needs() -> None:
    seen: dict[str, str] = {}
    got = compile_program(failing(MESSAGE, seen), compiler_options("TPU v5"), TPU_COMPILER, Silent())
    assert (got.module, got.peak_bytes) == (None, 608 * 2**30)
    assert seen["xla_tpu_scoped_vmem_limit_kib"] == "65536"


def test_another_failure_of_the_compiler_is_not_swallowed() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        compile_program(failing("INTERNAL: something else"), {}, TPU_COMPILER, Silent())


def test_progress_has_the_seconds_while_the_compiler_works() -> None:
    seen: list[int] = []

    class Heard(Silent):
        def update(self, done: int, total: int | None = None, **metrics: Any) -> None:
            del total, metrics
            seen.append(done)

    def work() -> str:
        time.sleep(1.2)
        return "done"

    assert in_thread(work, Heard()) == "done"
    assert seen == sorted(seen)
    assert seen[-1] >= 1
