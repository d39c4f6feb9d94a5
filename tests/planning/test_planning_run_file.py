"""What a train step needs of a run's file."""

import subprocess
import sys
from pathlib import Path

import pytest

from lifecycle.core.config import ConfigError
from lifecycle.planning.run_file import read_step
from tests.planning.shipped import ROOT, load, pretraining


def test_the_first_stage_is_read_as_the_run_has_it() -> None:
    words = ("mesh.fsdp=32", "train.pretrain.grad_accum=2")
    step, config = read_step(ROOT / "configs" / "llama3_8b_v5p_128.yaml", words), load("llama3_8b_v5p_128", *words)
    assert (step.model, step.mesh, step.train) == (config.model, config.mesh, pretraining(config))
    assert step.section == "train.pretrain"


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ("{}", "train"),
        ("{a: {objective: dqo, steps: 1, seq_len: 8, global_batch_size: 1}}", "did you mean .dpo"),
        ("{a: {objective: next_token, steps: 1, seq_len: 8, global_batch_siz: 1}}", "did you mean 'global_batch_size'"),
    ],
)
def test_a_file_without_such_a_stage_is_rejected(tmp_path: Path, train: str, says: str) -> None:
    file = tmp_path / "run.yaml"
    model = load("debug").model.model_dump_json()
    file.write_text(f"name: run\nmodel: {model}\ntrain: {train}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        read_step(file)


def test_a_process_that_imports_nothing_else_knows_the_objectives() -> None:
    code = (
        "import sys, pathlib, lifecycle.planning.run_file as r; print(r.read_step(pathlib.Path(sys.argv[1])).section)"
    )
    command = [sys.executable, "-c", code, str(ROOT / "configs" / "debug.yaml")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "train.pretrain"
