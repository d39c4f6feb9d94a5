"""`launch/tpu_vm.sh` against a `gcloud` that runs the hosts' commands in folders: what arrives there, and restarts."""

import shutil
import subprocess
from pathlib import Path

import pytest
from test_launching_jobset import HOSTILE
from tpu_vms import SCRIPTS, TpuVms

from lifecycle.testing.waiting import LIMIT_S, wait_until

ZONE = ("--zone", "z-1")
CREATE = ("create", "job", *ZONE, "--accelerator", "v6e-8")
UP = ("up", "job", *ZONE, "--accelerator", "v6e-4", "--spot", "--restarts", "0", "--", "lifecycle")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", *sorted(SCRIPTS.glob("*.sh"))], check=True)


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ((), ["--node-id=job", "--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e"]),
        (
            ("--slices", "2", "--spot", "--project", "p q", "--runtime", "r"),
            ["--node-count=2", "--node-prefix=job", "--accelerator-type=v6e-8", "--runtime-version=r", "--spot"],
        ),
    ],
)
def test_hosts_are_queued_for_and_waited_for(words: tuple[str, ...], asked: list[str], tmp_path: Path) -> None:
    vms = TpuVms(tmp_path)
    done = vms.call(*CREATE, *words)
    assert done.returncode == 0, done.stderr
    assert [line.rpartition(" ")[2] for line in done.stderr.splitlines()] == (
        ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    )
    where = ["--zone=z-1", *(["--project=p q"] if "p q" in words else [])]
    describe = ["describe", "job", "--format=value(state.state)", *where]
    assert vms.calls() == [["create", "job", *asked, *where], describe, describe, describe]


def test_a_dry_run_prints_the_commands_that_a_run_executes(tmp_path: Path) -> None:
    vms = TpuVms(tmp_path)
    words = ("up", "job", *ZONE, "--accelerator", "v6e-8", "--", "lifecycle", *HOSTILE)
    printed = vms.call(*words[:2], "--dry-run", *words[2:])
    assert printed.returncode == 0 and not (tmp_path / "calls").exists()
    (tmp_path / "states").write_text("ACTIVE")
    assert vms.call(*words).returncode == 0
    executed = vms.calls()
    lines = [line for line in printed.stdout.split("\n") if line.startswith("gcloud")]
    assert len(lines) == len(executed)
    replayed = subprocess.run(["bash", "-c", f"gcloud() {{ printf '%s\\0' \"$@\"; }}\n{printed.stdout}"],
                              capture_output=True, text=True, check=False, cwd=tmp_path)  # fmt: skip
    flat = [word for call in executed for word in ("compute", "tpus", "queued-resources", *call)]
    archive = next(word for word in flat if word.endswith("lifecycle.tgz"))
    assert replayed.stdout.split("\0")[:-1] == ["lifecycle.tgz" if word == archive else word for word in flat]


def test_the_code_and_every_word_arrive_on_each_host_of_each_slice(tmp_path: Path) -> None:
    vms = TpuVms(tmp_path, num_hosts=2, num_slices=2)
    (vms.hosts[0] / "lifecycle" / "runs").mkdir(parents=True)
    (vms.hosts[0] / "lifecycle" / "old.py").touch()
    (vms.checkout / ".gitignore").write_text("secret\n")
    (vms.checkout / "secret").touch()
    (vms.checkout / "new file.py").write_text("new")
    copied = vms.call("copy", "job", *ZONE)
    assert copied.returncode == 0, copied.stderr
    for host in vms.hosts:
        assert (host / "lifecycle" / "new file.py").read_text() == "new"
        assert not (host / "lifecycle" / "secret").exists()
        assert (host / "uv_words").read_text() == "sync --frozen --quiet --no-dev --extra tpu --extra store\n"
    assert (vms.hosts[0] / "lifecycle" / "runs").exists() and not (vms.hosts[0] / "lifecycle" / "old.py").exists()

    done = vms.call("run", "job", *ZONE, "--", "lifecycle", "run", *HOSTILE)
    assert done.returncode == 0, done.stdout + done.stderr
    for index, host in enumerate(vms.hosts):
        ((words, place),) = vms.started(host)
        assert words == ["run", *HOSTILE]
        assert place == {
            "LIFECYCLE_COORDINATOR": "10.0.0.0:8476",
            "LIFECYCLE_NUM_PROCESSES": "4",
            "LIFECYCLE_PROCESS_ID": str(index),
        }
        assert f"[{index}] attempt 1" in done.stdout


def test_status_75_starts_again_and_failures_are_counted(tmp_path: Path) -> None:
    vms = TpuVms(tmp_path, statuses="75 3 75 4 0")
    vms.install()
    done = vms.call("run", "job", *ZONE, "--restarts", "1", "--", "lifecycle")
    assert done.returncode == 4  # the second failure, though gcloud itself ends with 0
    assert [len(vms.started(host)) for host in vms.hosts] == [4, 4]
    assert "[1] launch/tpu_vm_worker.sh: ended with status 4" in done.stdout


def test_stop_asks_once_and_nothing_starts_again(tmp_path: Path) -> None:
    vms = TpuVms(tmp_path, num_hosts=1, statuses="wait 0")
    vms.install()
    (host,) = vms.hosts
    running = subprocess.Popen([vms.script, "run", "job", *ZONE, "--", "lifecycle"], env=vms.environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    log = host / "lifecycle-job" / "log"
    wait_until(lambda: log.exists() and "attempt 1" in log.read_text())
    second = vms.call("run", "job", *ZONE, "--", "lifecycle")
    assert second.returncode == 1 and "a run is under way" in second.stderr
    copied = vms.call("copy", "job", *ZONE)  # its code is not replaced under it
    assert copied.returncode == 1 and "a run is under way" in copied.stderr and not (host / "uv_words").exists()
    vms.call("stop", "job", *ZONE)
    assert running.wait(LIMIT_S) == 75
    assert (host / "terms").read_text() == "x" and len(vms.started(host)) == 1
    assert vms.call("logs", "job", *ZONE).returncode == 75  # later too


@pytest.mark.slow
def test_spot_hosts_that_were_taken_away_are_asked_for_again(tmp_path: Path) -> None:
    """Also if the queued resource says so only later."""
    vms = TpuVms(tmp_path, num_hosts=1, statuses="1 0")
    (tmp_path / "states").write_text("ACTIVE ACTIVE ACTIVE SUSPENDING ACTIVE")
    done = vms.call(*UP)
    assert done.returncode == 0, done.stderr
    verbs = [call[0] for call in vms.calls()]
    once = ["create", "describe", "scp", "ssh", "ssh"]
    assert verbs == [*once, *["describe"] * 3, "delete", *once]


def test_spot_hosts_that_stay_are_kept_after_a_failure(tmp_path: Path) -> None:
    vms = TpuVms(tmp_path, num_hosts=1, statuses="3")
    (tmp_path / "states").write_text("ACTIVE")
    assert vms.call(*UP).returncode == 3
    verbs = [call[0] for call in vms.calls()]
    assert verbs == ["create", "describe", "scp", "ssh", "ssh", *["describe"] * 11]  # for five minutes


@pytest.mark.slow
def test_nobody_looks_for_other_spot_hosts_after_stop(tmp_path: Path) -> None:
    vms = TpuVms(tmp_path, num_hosts=1, statuses="wait")
    (tmp_path / "states").write_text("ACTIVE SUSPENDED")
    running = subprocess.Popen([vms.script, *UP], env=vms.environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    log = vms.hosts[0] / "lifecycle-job" / "log"
    wait_until(lambda: log.exists() and "attempt 1" in log.read_text())
    vms.call("stop", "job", *ZONE)
    assert running.wait(LIMIT_S) == 75
    assert [call[0] for call in vms.calls()] == ["create", "describe", "scp", "ssh", "ssh", "ssh"]


@pytest.mark.parametrize(
    "words",
    [
        (), ("create", "job", *ZONE), ("run", "job", *ZONE), ("create", "job", "--zone"), ("copy", "job"),
        ("copy", "j;b", *ZONE), (*CREATE, "--slices", "0"), (*CREATE, "--colour"), (*CREATE[:-1], "tpu7x-8"),
    ],
)  # fmt: skip
def test_wrong_words_are_refused_before_anything_is_asked_for(words: tuple[str, ...], tmp_path: Path) -> None:
    vms = TpuVms(tmp_path)
    done = vms.call(*words)
    assert done.returncode == 2 and "launch/tpu_vm.sh" in done.stderr
    assert not (tmp_path / "calls").exists()
