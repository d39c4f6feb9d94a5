"""Facts of the machine and the job: huge pages by one restart, the matmul peak, the environment of a job."""

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from lifecycle.core import distributed, environments, machine, preemption, stopping
from lifecycle.core.config import ConfigError
from lifecycle.core.huge_pages import restart_with_huge_pages
from lifecycle.core.rendezvous import JobError, meet
from lifecycle.core.stopping import LOST_STATUS, failure_status

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


def test_an_error_of_all_processes_is_shown_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a job that has begun; JAX's store is a dict here."""
    held: dict[str, str] = {}

    class Store:
        def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
            assert allow_overwrite
            held[key] = value

        def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
            assert timeout_in_ms > 0
            if key not in held:
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return held[key]

    monkeypatch.setattr(distributed, "words_of_job", Store)
    monkeypatch.setattr(distributed, "SHOWN_S", 0.001)
    assert not distributed.is_shown_by_first("too large")
    distributed.show_error("too large")
    assert distributed.is_shown_by_first("too large") and not distributed.is_shown_by_first("too small")


def test_a_refused_process_tells_its_own_error_if_it_reaches_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    place = environments.Place("127.0.0.1:9", 2, 1, environments.EXPLICIT)
    monkeypatch.setattr(distributed, "find_place", lambda: place)
    monkeypatch.setattr(distributed, "meet", partial(meet, wait_s=0.1))
    told = r"no such file; process 0 does not answer at 127\.0\.0\.1:9"
    with pytest.raises(JobError, match=told), distributed.errors_are_shared():
        raise ConfigError("no such file")
    assert distributed.speaker().startswith("process 1 on ")


def test_sigterm_is_the_service_s_while_it_listens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler in C that only takes note; here, one that ignores."""
    monkeypatch.setattr(preemption, "_of_service", [])
    got: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: got.append(number))
    try:
        preemption._set(signal.SIGTERM, int(signal.SIG_IGN))
        os.kill(os.getpid(), signal.SIGTERM)
        assert not got
        preemption.set_aside()
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(got) == 1
        with preemption.listening():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(got) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_code_of_the_same_version_is_another_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the code is copied without git."""
    (tmp_path / "core").mkdir()
    monkeypatch.setattr(distributed, "__file__", str(tmp_path / "core" / "distributed.py"))
    monkeypatch.setattr(distributed, "code_version", lambda: "0.1.0")
    facts: list[str] = []
    for name, content in (("a.py", "x = 1"), ("a.py", "x = 2"), ("a.txt", "not code")):
        (tmp_path / "core" / name).write_text(content)
        facts.append(distributed._own_facts()["code"])
    assert facts[0] != facts[1] == facts[2] and facts[0].startswith("0.1.0 (")


def test_a_broken_collective_in_a_job_is_not_this_process_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message of a process whose neighbour is killed while it saves a checkpoint."""
    broken = ValueError("the checkpoint could not be written")
    broken.__cause__ = ValueError("UNKNOWN: Gloo AllGather failed: [gloo/transport/tcp/pair.cc:547] Connection closed")
    assert failure_status(broken) == 1  # of a job of one
    monkeypatch.setattr("lifecycle.core.stopping.has_joined", lambda: True)
    assert failure_status(broken) == LOST_STATUS
    assert failure_status(ConfigError("no such file")) == 1
    assert failure_status(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")) == 1


def test_sigterm_that_arrives_twice_is_one_request_and_a_later_one_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent: list[int] = []
    now = iter([100.0, 100.01, 103.0])
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(stopping, "os", SimpleNamespace(getpid=os.getpid, kill=lambda _, number: sent.append(number)))
    before, request = signal.getsignal(signal.SIGTERM), stopping.StopRequest()
    with request.listening():
        assert not request.reached(1)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert request.reached(2) and not sent
        signal.raise_signal(signal.SIGTERM)
        assert sent == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is before


def test_the_coordinator_is_reached_past_a_cluster_s_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC would wait for it there: without this, two processes with a dead proxy abort after a minute."""
    for name in (*distributed.PROXIES, *distributed.NO_PROXIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    distributed.reach_directly("10.0.0.1:20000")
    assert distributed.NO_PROXIES[0] not in os.environ
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost")
    monkeypatch.setenv("no_grpc_proxy", "")  # restored after the test
    distributed.reach_directly("10.0.0.1:20000")
    assert os.environ[distributed.NO_PROXIES[0]] == "localhost,10.0.0.1"
