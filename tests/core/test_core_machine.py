"""Facts of the machine and the job: huge pages by one restart, the matmul peak, the environment of a job."""

import os
import subprocess
import sys

import jax.numpy as jnp
import pytest

from lifecycle.core import distributed, environments, machine
from lifecycle.core.huge_pages import restart_with_huge_pages

PROGRAM = """
import os, sys
from lifecycle.core.huge_pages import restart_with_huge_pages
restart_with_huge_pages()
print(os.environ["GLIBC_TUNABLES"], sys.argv[1:], sys.flags.utf8_mode, os.getpid() == int(os.environ["STARTED"]))
"""


def start(**environment: str) -> str:
    """What the program prints; a shell starts it, so that `$$` is the process id it keeps through its restart."""
    line = 'STARTED=$$ exec "$0" -X utf8 -c "$1" one "two words"'
    env = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | environment
    found = subprocess.run(
        ["/bin/sh", "-c", line, sys.executable, PROGRAM], env=env, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's tunables are Linux's")
def test_a_program_restarts_once_with_huge_pages_and_its_own_arguments() -> None:
    assert start() == "glibc.malloc.hugetlb=1 ['one', 'two words'] 1 True"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's tunables are Linux's")
def test_tunables_that_are_there_are_kept() -> None:
    assert start(GLIBC_TUNABLES="glibc.malloc.arena_max=2").startswith(
        "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1 ['one'"
    )


def test_a_choice_of_the_user_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("restarted"))
    restart_with_huge_pages()


def test_the_matmul_peak_is_a_rate_that_a_machine_can_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PEAK_SIZE", 256)
    machine.matmul_peak.cache_clear()
    assert 1e8 < machine.matmul_peak(str(jnp.float32.dtype)) < 1e15
    machine.matmul_peak.cache_clear()


def test_one_process_is_a_job_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "ENVIRONMENTS", {})  # this machine may be one of a cluster
    for name in (environments.COORDINATOR, environments.COUNT, environments.INDEX, environments.SWITCH):
        monkeypatch.delenv(name, raising=False)
    distributed.start()
    assert distributed.is_writer()
