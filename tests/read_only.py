"""Commands that see a folder as on a read-only mount, even when root runs them; skips where Linux does not allow it."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

MOUNT = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def mounted(folder: Path) -> list[str]:
    """The beginning of a command line that runs the rest with `folder` mounted read-only, for that process alone."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    begin = ["unshare", "--mount", *user, "sh", "-c", MOUNT, str(folder)]
    if not shutil.which("unshare") or subprocess.run([*begin, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no private mounts here: they need Linux with user namespaces, or root")
    return begin


def read_only(folder: Path, command: Sequence[str]) -> str:
    """What a command prints that sees `folder` as read-only, on one line."""
    ended = subprocess.run([*mounted(folder), *command], check=False, capture_output=True, text=True)
    return " ".join(f"{ended.stdout} {ended.stderr}".split())
