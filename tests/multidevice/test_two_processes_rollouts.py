"""Two real processes sample, score and learn as one does: rewards are found in the first, and all train on them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lifecycle.core.runlog import METRICS, ROLLOUTS, read_log
from lifecycle.model.params import abstract_params
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.training.job import CHECKPOINTS
from tests.multidevice.test_two_processes import run_processes
from tests.rl.toy_job import CALLS, trained
from tests.rl.toy_policy import MODEL
from tests.stages.test_stages_episodes import RUN

MESH = {"fsdp": 2}
EPISODES: dict[str, Any] = {
    "episodes": {"environment": "tests/rl/toy_job.py:Echo", "max_turns": 2},
    "max_completion_tokens": 24, "global_batch_size": 12,
}  # fmt: skip
CLOSE = 1e-4  # weights after four steps; the processes sum in another order
pytestmark = pytest.mark.long


def by_two(out: Path, own: dict[str, Any], stop: int | None = None) -> str:
    """The hash of the weights; none of a run that is stopped."""
    given = json.dumps({"mesh": MESH, "settings": own, "stop": stop})
    outputs = run_processes([sys.executable, "-m", "tests.rl.toy_job", str(out), given], count=2, devices=1)
    told = [json.loads(line)["hash"] for text in outputs for line in text.splitlines() if line.startswith("{")]
    assert len(told) == (stop is None)
    return "".join(told)


def assert_as_one(folder: Path, names: Sequence[str]) -> None:
    """What the jobs `one` and `two` have logged under these names, and their weights, are close."""
    one, two = (
        [(name, record[name]) for record in read_log(folder / of / METRICS) for name in names if name in record]
        for of in ("one", "two")
    )
    assert [name for name, _ in one] == [name for name, _ in two] and len(one) > 12
    np.testing.assert_allclose([value for _, value in two], [value for _, value in one], atol=CLOSE)
    weights = [load_params(folder / of / CHECKPOINTS, abstract_params(MODEL)) for of in ("one", "two")]
    jax.tree.map(lambda left, right: np.testing.assert_allclose(right, left, atol=CLOSE), *weights)


@pytest.mark.parametrize(
    "own",
    [
        EPISODES,
        pytest.param({}, marks=pytest.mark.long),
        pytest.param({"beta": 0.1, "reward": "judge"}, marks=pytest.mark.long),
        pytest.param({"max_staleness": 1, "beta": 0.1}, marks=pytest.mark.long),
    ],
    ids=["episodes", "functions", "model", "ahead"],
)
def test_two_processes_learn_from_rewards_as_one(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {name: tmp_path / f"calls-{name}" for name in ("one", "two")}
    monkeypatch.setenv(CALLS, str(calls["one"]))
    trained(tmp_path / "one", MESH, own, None)
    monkeypatch.setenv(CALLS, str(calls["two"]))
    by_two(tmp_path / "two", own)
    assert calls["two"].read_text() == calls["one"].read_text() and set(calls["two"].read_text().split()) == {"0"}
    assert_as_one(tmp_path, ("loss", "reward", "heldout_reward", "completions/mean_length"))
    said = [
        [json.loads(line)["completion"] for line in (tmp_path / one / ROLLOUTS).read_text().splitlines()]
        for one in ("one", "two")
    ]
    assert said[0] == said[1] and len(said[0]) > 4


@pytest.mark.long
@pytest.mark.parametrize("own", [{}, {"max_staleness": 1}], ids=["now", "ahead"])
def test_two_processes_go_on_to_the_same_bits(
    own: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CALLS, str(tmp_path / "calls"))
    whole = by_two(tmp_path / "whole", own)
    by_two(tmp_path / "stopped", own, stop=2)
    assert by_two(tmp_path / "stopped", own) == whole


def test_a_stages_environments_live_in_the_first_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that begin its rows too: prompts have the number of the process that asked them."""
    monkeypatch.setenv(CALLS, str(tmp_path / "calls"))
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "echo.py").write_text("from tests.rl.toy_job import Echo\n")
    rows = [{"prompt": f"{n}", "letter": "abcdefgh"[n]} for n in range(8)]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chat = [{"prompt": f"{n}", "completion": "9"} for n in range(8)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat))
    (tmp_path / "run.yaml").write_text(RUN)
    own = ["mesh.fsdp=2", "train.beat.episodes.environment=echo.py:Echo"]
    command = [str(Path(sys.executable).parent / "lifecycle"), "run", "run.yaml", *own, "--until", "beat"]
    run_processes(command, 2, devices=1)
    assert set((tmp_path / "calls").read_text().split()) == {"0"}
