"""The real command line in real processes: `lifecycle VERB configs/debug.yaml root=... key=value ...`.

`Debug` is a run in a folder of its own. Its commands get no input, one device unless told otherwise, and plain output.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from lifecycle.core.artifact import Artifact, open_artifact
from lifecycle.testing.waiting import LIMIT_S

REPOSITORY = Path(__file__).parents[2]
DEBUG = REPOSITORY / "configs" / "debug.yaml"
MEASURED = "train.sft.tasks={names: [choice]}"  # no part of any key: commands without it find the same artifacts
LIFECYCLE = str(Path(sys.executable).with_name("lifecycle"))
# LLVM's optimiser takes half of the time of a run this small, and changes nothing that is compared here.
XLA_FLAGS = "--xla_backend_optimization_level=0"


def environment(devices: int = 1) -> dict[str, str]:
    flags = XLA_FLAGS + (f" --xla_force_host_platform_device_count={devices}" if devices > 1 else "")
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}


@dataclass(frozen=True)
class Debug:
    """A run of a config, by default `configs/debug.yaml`, in a root of its own."""

    root: Path
    name: str = "debug"
    config: Path = DEBUG
    settings: tuple[str, ...] = field(default=())  # of every command

    @property
    def folder(self) -> Path:
        return self.root / self.name

    def command(self, verb: str, *arguments: str) -> list[str]:
        root = [f"root={self.root}", f"name={self.name}"]
        return [LIFECYCLE, verb, str(self.config), *arguments, *root, *self.settings]

    def __call__(self, verb: str, *arguments: str, devices: int = 1) -> subprocess.CompletedProcess[str]:
        """Runs a verb to its end, whatever that is."""
        return subprocess.run(
            self.command(verb, *arguments),
            env=environment(devices), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LIMIT_S,
        )  # fmt: skip

    def succeed(self, verb: str, *arguments: str, devices: int = 1) -> str:
        """Runs a verb that has to work; its output."""
        ended = self(verb, *arguments, devices=devices)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def fail(self, verb: str, *arguments: str, devices: int = 1) -> str:
        """Runs a verb that has to end with a user's error; its message in one line."""
        ended = self(verb, *arguments, devices=devices)
        assert ended.returncode == 1, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stdout + ended.stderr, ended.stderr
        before, name, message = ended.stderr.partition("lifecycle: ")
        assert name and (not before or before.endswith("\n")), ended.stderr  # behind warnings of JAX, if there are any
        return " ".join(message.split())

    def begin(
        self, verb: str, *arguments: str, output: IO[str] | None = None, devices: int = 1
    ) -> subprocess.Popen[str]:
        """Starts a verb in a process group of its own."""
        return subprocess.Popen(
            self.command(verb, *arguments),
            env=environment(devices), stdin=subprocess.DEVNULL, stdout=output or subprocess.DEVNULL,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def artifacts(self) -> dict[str, Artifact]:
        """The finished artifacts by folder name."""
        found = (path.parent for path in self.folder.glob("*/manifest.json") if path.parent.suffix != ".partial")
        return {path.name: open_artifact(path) for path in sorted(found)}

    def artifact(self, stage: str) -> Artifact:
        """The one finished artifact of a stage."""
        (found,) = (artifact for artifact in self.artifacts().values() if artifact.manifest.stage == stage)
        return found

    def copy(self, root: Path, *parts: str) -> "Debug":
        """A copy of the run, or of some of its stages and its compiled programs, under another root."""
        for path in self.folder.iterdir():
            name = path.name.rpartition("-")[0] or path.name
            if path.is_dir() and (not parts or name in (*parts, "compiled")):
                shutil.copytree(path, root / self.name / path.name)
            elif path.is_file() and not parts:
                (root / self.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(path, root / self.name / path.name)
        return Debug(root, self.name, self.config, self.settings)

    def beside(self, root: Path, *settings: str) -> "Debug":
        """Nothing of the run but its compiled programs, under another root."""
        shutil.copytree(self.folder / "compiled", root / self.name / "compiled")
        return Debug(root, self.name, self.config, (*self.settings, *settings))
