"""`launch/skypilot.yaml`: each node's place in the job and its words, and SkyPilot's own parser, where installed."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_launching_jobset import HOSTILE
from tpu_vms import program

from lifecycle.core.stopping import RESTART_STATUS

TASK = Path(__file__).parents[2] / "launch" / "skypilot.yaml"
SKYPILOT = os.environ.get("LIFECYCLE_SKYPILOT_PYTHON")  # a Python with skypilot, of an environment of its own
LOAD = """
import json, sky, sys, yaml
tree = yaml.safe_load(open(sys.argv[1]))
task = sky.Task.from_yaml_config(tree, env_overrides=[("BUCKET", "gs://some-bucket"), ("WORDS", "run c.yaml")])
(resources,) = task.resources
(mount,) = task.storage_mounts.items()
print(json.dumps([task.num_nodes, resources.use_spot, resources.accelerators, resources.job_recovery,
                  mount[0], mount[1].source, mount[1].mode.value]))
"""


def test_each_node_starts_the_same_words_in_its_place(tmp_path: Path) -> None:
    report = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"
    program(tmp_path / ".venv" / "bin" / "lifecycle", report)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    given = {
        "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.3",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": "1",
        "WORDS": f"run {shlex.join(HOSTILE)}",
    }
    script = yaml.safe_load(TASK.read_text())["run"]
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=os.environ | given, capture_output=True, text=True,
                          check=True)  # fmt: skip
    words, environment = json.loads(done.stdout)
    assert words == ["run", *HOSTILE]
    assert environment["LIFECYCLE_COORDINATOR"] == "10.0.0.7:8476"
    assert (environment["LIFECYCLE_NUM_PROCESSES"], environment["LIFECYCLE_PROCESS_ID"]) == ("2", "1")


def test_the_accelerators_packages_and_the_stores_client_are_installed(tmp_path: Path) -> None:
    program(tmp_path / ".local" / "bin" / "uv", '#!/bin/sh\necho "$@"\n')
    program(tmp_path / "bin" / "python3", "#!/bin/sh\n")
    given = {"HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "EXTRA": "tpu"}
    script = yaml.safe_load(TASK.read_text())["setup"]
    done = subprocess.run(["bash", "-c", script], env=os.environ | given, capture_output=True, text=True, check=True)
    assert done.stdout == "sync --frozen --quiet --no-dev --extra tpu --extra store\n"


@pytest.mark.skipif(SKYPILOT is None, reason="LIFECYCLE_SKYPILOT_PYTHON names no Python with skypilot")
def test_skypilots_parser_reads_it(tmp_path: Path) -> None:
    assert SKYPILOT is not None
    settings = os.environ | {"HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run([SKYPILOT, "-c", LOAD, str(TASK)], env=settings, capture_output=True, text=True, check=True,
                          cwd=TASK.parents[1])  # fmt: skip
    num_nodes, is_spot, accelerators, recovery, mount, source, mode = json.loads(done.stdout.splitlines()[-1])
    assert (num_nodes, is_spot, accelerators) == (1, True, {"H100": 8})
    assert (recovery["recover_on_exit_codes"], recovery["max_restarts_on_errors"]) == ([RESTART_STATUS], 20)
    assert (mount, source, mode) == ("/bucket", "gs://some-bucket", "MOUNT")
