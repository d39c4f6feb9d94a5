"""Steps on the student's own answers: which they are, what they ask, and that a killed run makes them again."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.core.timesheet import TIMES, account, read_sessions
from lifecycle.rl.student import StepDraws
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import StopAt
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.training.packing import DataStateError, ExampleRows
from tests.rl.toy_policy import MODEL, SEED, TOKENIZER
from tests.rl.toy_student import NUM_IDS, batches_of, examples, settings, trained


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(MODEL)


def later(params: Any, steps: int) -> Any:
    return jax.tree.map(lambda array: array * 1.05**steps, params)


def test_a_share_of_the_steps_is_drawn_and_counted_from_any_of_them() -> None:
    draws = StepDraws(0.3, seed=1)
    own = [draws.is_own(step) for step in range(2000)]
    assert 0.27 < np.mean(own) < 0.33 and own != [StepDraws(0.3, seed=2).is_own(step) for step in range(2000)]
    assert all(map(StepDraws(1.0, seed=1).is_own, range(100)))
    for first in (0, 700):
        own_before, rows_before = StepDraws(0.3, 1, first).before(1500)
        assert own_before == sum(own[first:1500]) and own_before + rows_before == 1500 - first


def test_a_prompt_is_what_comes_before_the_last_answer() -> None:
    row = examples()[2]
    prompt = row.prompt_ids
    assert TOKENIZER.decode(prompt[1:]) == "2?aand?" and len(row.ids) == len(prompt) + 3
    end = EncodedRow([*row.ids, 7, 8], [*row.loss_mask, False, False])  # what follows the answer is no part of it
    assert end.prompt_ids == prompt
    assert EncodedRow([1, 2], [True, True]).prompt_ids == [] and EncodedRow([1, 2], [False] * 2).prompt_ids == [1, 2]


@pytest.mark.slow
def test_batches_are_rows_or_answers_and_neither_passes_over_any(params: Any) -> None:
    """Answers are in the rows' columns and shapes, of ids that the teacher has, each behind its prompt."""
    train = settings()
    batches, rows = batches_of(train), ExampleRows(examples(), train.seq_len, SEED)
    prompts, taken = [], 0
    for step in range(8):
        batch = batches.batch(step, later(params, step))
        contents, told = batches.contents(step), batches.told(step)
        if "prompts" not in contents[0]:
            expected = [rows.row(taken * 4 + index)["tokens"] for index in range(4)]
            np.testing.assert_array_equal(batch["tokens"], np.stack(expected))
            assert told == {"on_policy": 0.0} and not batches.spent(step)
            taken += 1
            continue
        prompts += contents[0]["prompts"]
        assert told["on_policy"] == 1 and 1 <= told["completions/mean_length"] <= told["completions/max_length"] <= 6
        assert batches.spent(step) == {"generation": told["generation_s"]}
        assert {name: column.shape for name, column in batch.items()} == dict.fromkeys(batch, (4, 32))
        learned = batch["targets"][batch["loss_mask"] > 0]
        assert len(learned) == round(told["completions/mean_length"] * 8) and learned.max() < NUM_IDS
        starts = {tuple(row.ids[:8]) for row in examples()}
        segments = [row["tokens"] for row in split(batch)]
        assert len(segments) == 8 and all(tuple(segment[:8].tolist()) in starts for segment in segments)
    assert taken and sorted(prompts[:9]) == list(range(9)) and len(prompts) > 9


def split(batch: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    return [
        {name: column[row][ids == segment] for name, column in batch.items()}
        for row, ids in enumerate(batch["segment_ids"])
        for segment in range(1, ids.max() + 1)
    ]


def test_the_state_has_both_orders(params: Any) -> None:
    batches = batches_of(settings())
    made = [batches.batch(step, later(params, step)) for step in range(7)]
    for at in (1, 4):
        again = batches_of(settings())
        assert again.restore(batches.state(at)) == at
        for step in range(at, 7):
            batch = again.batch(step, later(params, step))
            for name, column in made[step].items():
                np.testing.assert_array_equal(batch[name], column)
        assert again.state(6) == batches.state(6)
    with pytest.raises(DataStateError, match="other prompts"):
        batches_of(settings(), examples()[:8]).restore(
            {**batches.state(1), "rows": batches_of(settings(), examples()[:8]).state(1)["rows"]}
        )


def test_a_process_has_its_rows_of_the_answers_of_all(params: Any) -> None:
    train = settings(1.0)
    whole, part = (batches_of(train, held=held).batch(0, params) for held in (None, [0, 3]))
    for name, column in whole.items():
        np.testing.assert_array_equal(part[name], column[[0, 3]])


def test_a_whole_share_takes_no_row(params: Any) -> None:
    batches = batches_of(settings(1.0))
    assert all(batches.contents(step)[0].keys() == {"prompts"} for step in range(50))
    assert batches.state(50)["rows"]["row"] == 0 and batches.state(50)["place"] == 50 * 8


@pytest.mark.parametrize(
    "share", [pytest.param(0.5, marks=pytest.mark.long), pytest.param(1.0, marks=pytest.mark.long)]
)
def test_a_run_that_is_killed_goes_on_to_the_same_weights_and_log(share: float, tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", {}, share, Silent())
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", {}, share, StopAt(3))
    again = trained(tmp_path / "killed", {}, share, Silent())
    assert again["params_hash"] == whole["params_hash"] and again["loss"] == whole["loss"] > 0
    logs = [told(tmp_path / name) for name in ("whole", "killed")]
    assert logs[0] == logs[1] and {record["on_policy"] for record in logs[0]} == ({0.0, 1.0} if share < 1 else {1.0})
    assert any("completions/clipped_ratio" in record for record in logs[0])
    times = account(read_sessions(tmp_path / "whole" / TIMES))
    assert times.seconds["generation"] > 0


def told(out: Path) -> list[dict[str, Any]]:
    records = [record for record in read_log(out / METRICS) if "on_policy" in record]
    return [
        {name: value for name, value in record.items() if name not in ("generation_s", "time")} for record in records
    ]
