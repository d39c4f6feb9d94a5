"""Runs a script that measures in processes of its own, without the suite's eight devices."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any


def measured(script: Path, folder: Path) -> dict[str, Any]:
    """The figures that `python SCRIPT FOLDER` prints as its last line; the folder is removed."""
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    command = [sys.executable, str(script), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr[-4000:]
    figures = json.loads(done.stdout.splitlines()[-1])
    print(figures)
    return figures
