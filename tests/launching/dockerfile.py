"""A Dockerfile's steps without a Docker daemon: its instructions, and a folder in which they run as in a build.

`build` needs Linux and root. The steps run in a `chroot` whose /usr is this machine's, below an overlay that takes all
changes; a virtual environment in /usr/local stands for the Python of the base image. What it cannot show: that the base
image itself has the programs that the steps call, beyond Python, pip and coreutils.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

PREPARE = r"""
set -euo pipefail
mount --make-rprivate /
mkdir -p etc usr upper work proc dev opt tmp home root
chmod 755 . && chmod 1777 tmp
mount -t overlay overlay -o "lowerdir=/usr,upperdir=$PWD/upper,workdir=$PWD/work" usr
for name in bin sbin lib lib64; do ln -sfn "usr/$name" "$name"; done
[ -e etc/passwd ] || cp -a /etc/. etc/
for name in proc dev opt; do mount --rbind "/$name" "$name"; done
[ -e usr/local/bin/pip ] || chroot . /usr/bin/python3 -m venv /usr/local
exec "$@"
"""
BASE_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
OUTSIDE = re.compile(r"(?i)(pip|uv|ssl|no|https?|all)_\w+")  # how this machine reaches package registries


@dataclass
class Image:
    """What the instructions have made so far."""

    root: Path
    environment: dict[str, str]
    folder: str = "/"
    user: str = "0"
    command: list[str] = field(default_factory=list)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs a program inside, as the image's user."""
        user = ["--userspec", f"{self.user}:{self.user}"] if self.user != "0" else []
        inside = ["chroot", *user, ".", "sh", "-c", f'cd {shlex.quote(self.folder)} && exec "$@"', "sh", *words]
        outside = {name: value for name, value in os.environ.items() if OUTSIDE.fullmatch(name)}
        return subprocess.run(
            ["unshare", "--mount", "bash", "-c", PREPARE, "bash", *inside],
            cwd=self.root, env=outside | self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction with its text, lines joined, comments dropped."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(name, " ".join(text.split())) for name, _, text in split]


def build(dockerfile: Path, context: Path, root: Path, **arguments: str) -> Image:
    """Runs the instructions in `root`. Raises `AssertionError` with the output of a step that fails."""
    image = Image(root, {"PATH": BASE_PATH, "HOME": "/root"})
    given: dict[str, str] = {}
    for name, text in instructions(dockerfile):
        match name:
            case "FROM":
                assert text.startswith("python:3.13-"), "the virtual environment in /usr/local stands for Python 3.13"
            case "ENV":
                for word in shlex.split(text):
                    variable, _, value = word.partition("=")
                    image.environment[variable] = value.replace("$PATH", image.environment["PATH"])
            case "ARG":
                variable, _, default = text.partition("=")
                given[variable] = arguments.get(variable, default)
            case "WORKDIR":
                image.folder = text
                (root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "COPY":
                *sources, target = text.split()
                for source in sources:
                    _copy(context / source, root / image.folder.lstrip("/") / target)
            case "RUN":
                done = image.run("env", *(f"{key}={value}" for key, value in given.items()), "sh", "-c", text)
                assert done.returncode == 0, f"RUN {text}\n{done.stdout}{done.stderr}"
            case "USER":
                image.user = text
            case "CMD":
                image.command = json.loads(text)
            case _:
                raise AssertionError(f"{name}: an instruction that this cannot run")
    return image


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target / source.name if target.is_dir() else target)
