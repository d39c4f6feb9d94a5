"""A wheel has all that a run needs where there is no clone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = """
name: own
model: smollm2_135m
data: {preset: web, sources: [{name: own, path: own}]}
tokenizer: {kind: bytes}
train: {base: {objective: next_token, steps: 1, seq_len: 8, global_batch_size: 1}}
"""
READ = """
from pathlib import Path
from lifecycle.cli.arguments import read_config
from lifecycle.core.config import OWN_PRESETS
print(OWN_PRESETS, read_config(Path("run.yaml"), ()).model.num_layers)
"""


@pytest.mark.slow
def test_a_wheel_brings_the_presets(tmp_path: Path) -> None:
    built, installed = tmp_path / "built", tmp_path / "installed"
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", str(built)], cwd=ROOT, check=True)
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(installed)
    presets = {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*.yaml")}
    assert presets and all((installed / "lifecycle" / path).is_file() for path in presets)
    (tmp_path / "run.yaml").write_text(RUN)
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-c", READ]
    read = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert read.split() == [str(installed / "lifecycle" / "configs"), "30"]
