"""Cloud TPU VMs in folders: a `gcloud` that records its arguments and runs what it is told on each "host", which is a
home folder with its metadata, and programs that stand in for the host's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from lifecycle.testing.waiting import LIMIT_S

SCRIPTS = Path(__file__).parents[2] / "launch"
GCLOUD = r"""
import json, os, pathlib, subprocess, sys
here = pathlib.Path(os.environ["FAKE"])
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\n")
verb, words = sys.argv[4], sys.argv[5:]
if verb == "describe":
    states = (here / "states").read_text().split()
    print(states[0])
    (here / "states").write_text(" ".join(states[1:] or states))
hosts = sorted((here / "hosts").glob("*"))
if verb == "scp":
    for host in hosts:
        (host / words[1].partition(":")[2]).write_bytes(pathlib.Path(words[0]).read_bytes())
if verb == "ssh":
    command = next(word for word in words if word.startswith("--command=")).removeprefix("--command=")
    at = lambda host: dict(os.environ, HOME=str(host), PATH=f"{here / 'host_bin'}:{os.environ['PATH']}")
    started = [subprocess.Popen(["bash", "-c", command], cwd=host, env=at(host)) for host in hosts]
    [process.wait() for process in started]  # its own status is 0 whatever the hosts' commands end with
"""
CURL = '#!/bin/sh\n[ "$5" = "Metadata-Flavor: Google" ] && cat "$HOME/metadata/${6##*/}"\n'
LIFECYCLE = r"""
import json, os, pathlib, signal, sys, time
home = pathlib.Path.home()
with (home / "started").open("a") as file:
    names = [name for name in os.environ if name.startswith("LIFECYCLE_")]
    file.write(json.dumps([sys.argv[1:], {name: os.environ[name] for name in names}]) + "\n")
attempts = len((home / "started").read_text().splitlines())
statuses = (home / "statuses").read_text().split()
def stop(*_):
    with (home / "terms").open("a") as file: file.write("x")
    time.sleep(0.2)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("attempt", attempts, flush=True)
if statuses[attempts - 1] == "wait": time.sleep(600)
sys.exit(int(statuses[attempts - 1]))
"""
UV = """#!/bin/sh
mkdir -p .venv/bin && cp "$HOME/lifecycle_program" .venv/bin/lifecycle && echo "$@" > "$HOME/uv_words"
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!{sys.executable}\n{text}")
    path.chmod(0o755)


class TpuVms:
    """`num_slices` slices of `num_hosts` hosts each; a run's attempts end with `statuses` there."""

    def __init__(self, folder: Path, num_hosts: int = 2, num_slices: int = 1, statuses: str = "0") -> None:
        self.folder = folder
        self.checkout = folder / "checkout"
        shutil.copytree(SCRIPTS, self.checkout / "launch")
        subprocess.run(["git", "init", "--quiet", self.checkout], check=True)
        program(folder / "bin" / "gcloud", GCLOUD)
        for name in ("sleep", "python3"):  # nobody waits for a cloud, and nothing is installed
            program(folder / ("bin" if name == "sleep" else "host_bin") / name, "#!/bin/sh\n")
        program(folder / "host_bin" / "curl", CURL)
        program(folder / "host_bin" / "sleep", '#!/bin/sh\nexec /usr/bin/sleep "$@"\n')
        (folder / "states").write_text("WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
        self.hosts = [folder / "hosts" / f"{s}-{w}" for s in range(num_slices) for w in range(num_hosts)]
        for index, host in enumerate(self.hosts):
            program(host / "lifecycle_program", LIFECYCLE)
            program(host / ".local" / "bin" / "uv", UV)
            (host / "statuses").write_text(statuses)
            slice_index, worker = divmod(index, num_hosts)
            metadata = {
                "agent-worker-number": str(worker),
                "worker-network-endpoints": ",".join(f"unused:{w}:10.0.{slice_index}.{w}" for w in range(num_hosts)),
                "tpu-env": "ACCELERATOR_TYPE: 'v6e-8'\n",
            }
            if num_slices > 1:
                metadata["tpu-env"] += (
                    f"MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.0:8080'\nMEGASCALE_NUM_SLICES: '{num_slices}'\n"
                    f"MEGASCALE_SLICE_ID: '{slice_index}'\n"
                )
            (host / "metadata").mkdir()
            for name, text in metadata.items():
                (host / "metadata" / name).write_text(text)

    def install(self) -> None:
        """What `copy` leaves on the hosts, as far as a run needs it."""
        for host in self.hosts:
            (host / "lifecycle").mkdir()
            (host / "lifecycle" / "launch").symlink_to(SCRIPTS)
            program(host / "lifecycle" / ".venv" / "bin" / "lifecycle", LIFECYCLE)

    @property
    def script(self) -> Path:
        return self.checkout / "launch" / "tpu_vm.sh"

    @property
    def environment(self) -> dict[str, str]:
        return dict(os.environ, FAKE=str(self.folder), PATH=f"{self.folder / 'bin'}:{os.environ['PATH']}")

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.script, *words], env=self.environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )

    def calls(self) -> list[list[str]]:
        """The arguments of each call of gcloud, without the name of its group."""
        recorded = [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]
        assert all(words[:3] == ["compute", "tpus", "queued-resources"] for words in recorded)
        (self.folder / "calls").unlink()
        return [words[3:] for words in recorded]

    def started(self, host: Path) -> list[tuple[list[str], dict[str, str]]]:
        """Each attempt's arguments and place in the job."""
        return [tuple(json.loads(line)) for line in (host / "started").read_text().splitlines()]
