"""Processes with different folders: refused, by host, where a run is in a folder; otherwise all know that they have."""

import sys
from pathlib import Path

import pytest

from tests.multidevice.test_two_processes import run_processes

PROGRAM = """
import os, platform, sys
from pathlib import Path
from lifecycle.core import distributed, shared_folder
index = os.environ["LIFECYCLE_PROCESS_ID"]
platform.node = lambda: f"host{index}"
shared_folder.WAIT_S = shared_folder.LOOK_S = 1.0
distributed.start()
for name in ("both", f"only-{index}"):
    try:
        shared_folder.require_shared(Path(sys.argv[1]) / name)
        print("shared", flush=True)
    except ValueError as error:
        print(error, flush=True)
    shared_folder.look_for_shared(Path(sys.argv[1]) / name)
    print(shared_folder.is_apart(), flush=True)
os._exit(0)
"""


@pytest.mark.long
def test_hosts_that_do_not_see_the_folder_are_named(tmp_path: Path) -> None:
    for printed in run_processes([sys.executable, "-c", PROGRAM, str(tmp_path)], 2, 1):
        shared, first, refused, second = printed.splitlines()[-4:]  # gloo greets
        assert (shared, first, second) == ("shared", "False", "True")
        assert "not the same folder on host1 as on" in refused and "an address in object storage" in refused
    assert not list(tmp_path.rglob(".shared-*"))
