"""Tasks measured while a run trains: the evaluation's scores, one program, and the same weights as without them."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from jax import monitoring

from lifecycle.core.config import ConfigError, validate
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.evals.greedy import greedy_loglikelihoods
from lifecycle.evals.likelihood import LikelihoodTask
from lifecycle.evals.measurement import MeasuredTask, TaskMeasurement, chosen, read_measured
from lifecycle.evals.results import ResultError
from lifecycle.evals.rows import read_rows
from lifecycle.evals.subject import Pair
from lifecycle.evals.tasks import TaskConfig
from lifecycle.evals.texts import TextScore
from lifecycle.inference.beams import BeamConfig
from lifecycle.model.params import Params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import TinyRun, tiny_job
from lifecycle.testing.tiny_rows import MODEL
from lifecycle.training.hooks.evaluate import Evaluate
from lifecycle.training.loop import run_job
from lifecycle.training.scoring import loglikelihoods

MESH = build_mesh(MeshConfig())
NUM_IDS = 90  # the model has 96


class Letters:
    """Bytes as some of the tiny model's ids."""

    bos_id, eos_id = 0, 1

    def begin(self, ids: Sequence[int]) -> list[int]:
        return [0, *ids]

    def encode(self, text: str) -> list[int]:
        return [2 + byte % 80 for byte in text.encode()]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [0, *(token for message in messages for token in self.encode(message["content"])), 1]


class Subject:
    """The tiny model as the evaluation stage has it."""

    encoder, max_seq_len = Letters(), MODEL.max_seq_len

    def __init__(self, params: Params) -> None:
        self.params = params

    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[float]:
        return loglikelihoods(MODEL, self.params, pairs, MESH)

    def greedy_loglikelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        return greedy_loglikelihoods(MODEL, self.params, pairs, MESH, NUM_IDS)

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, stop: Sequence[str], beams: BeamConfig | None
    ) -> list[str]:
        raise AssertionError("no task here generates")


class Notes(Silent):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def note(self, text: str) -> None:
        self.texts.append(text)


def task(folder: Path, kind: str, rows: Sequence[Mapping[str, Any]], **settings: Any) -> Any:
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return validate(TaskConfig, {"name": kind, "kind": kind, "rows": str(path), **settings})


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[LikelihoodTask]:
    """One of each kind; the first has more pairs than are scored together."""
    draw, folder = random.Random(0), tmp_path_factory.mktemp("tasks")

    def text(longest: int) -> str:
        return "".join(draw.choices("abcdefgh ", k=draw.randint(2, longest))).strip() or "a"

    choices = [{"query": f"{n} {text(20)}", "choices": [f"{text(8)}{i}" for i in range(3)], "gold": n % 3}
               for n in range(100)]  # fmt: skip
    return [
        task(folder, "multiple_choice", choices, chat=False),
        task(folder, "bits_per_byte", [{"text": f"{n} {text(150)}"} for n in range(6)]),  # longer than the context
        task(folder, "greedy_match", [{"prompt": f"{n}", "answer": text(2)} for n in range(8)], chat=False),
    ]


def measurement_of(tasks: Sequence[LikelihoodTask], limit: int | None = None) -> TaskMeasurement:
    found = read_measured(tasks, limit, {}, Letters(), MODEL.max_seq_len, Silent())
    return TaskMeasurement(found, MODEL, MESH, NUM_IDS)


@pytest.fixture(scope="module")
def params() -> Params:
    """Large enough that what is seen matters."""
    return jax.tree.map(lambda x: 3 * x, jax.device_get(random_params(MODEL)))


def test_weights_have_the_evaluations_scores_to_the_last_bit(tasks: list[LikelihoodTask], params: Params) -> None:
    measured = measurement_of(tasks).measure(params)
    for each in tasks:
        result = each.score(read_rows(each, {}).rows, Subject(params), Silent())
        own = {name.partition("/")[2]: value for name, value in measured.items() if name.startswith(f"{each.name}/")}
        error = own.pop(f"{result.metric}_stderr")
        assert own == {result.metric: result.mean, **result.other}
        if set(result.scores) <= {0.0, 1.0}:  # the textbook's s / root n
            assert error == pytest.approx(math.sqrt(result.mean * (1 - result.mean) / (result.n - 1)))


@pytest.mark.slow
def test_training_is_the_same_and_nothing_is_compiled_after_the_start(
    tasks: list[LikelihoodTask], tmp_path: Path
) -> None:
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        compiled.append(f"{event} {duration_secs}")

    measurement, seen = measurement_of(tasks), list[Sequence[str]]()

    def measure(params: Params) -> dict[str, float]:
        before = len(compiled)
        values = measurement.measure(params)
        seen.append([event for event in compiled[before:] if "backend_compile" in event])
        return values

    settings = TinyRun(steps=2)
    plain = run_job(tiny_job(tmp_path / "plain", settings), Silent())
    monitoring.register_event_duration_secs_listener(listen)
    hook = Evaluate(1, measure, measurement.prepare)
    assert run_job(tiny_job(tmp_path / "run", settings), Silent(), [hook])["params_hash"] == plain["params_hash"]
    assert seen == [[], [], []] and any("backend_compile" in event for event in compiled)
    found = [record for record in read_log(tmp_path / "run" / METRICS) if "multiple_choice/chance" in record]
    assert [record["step"] for record in found] == [0, 1, 2]
    assert len({record["bits_per_byte/bits_per_byte"] for record in found}) == 3


def test_of_weights_that_are_not_numbers_nothing_is_measured(tasks: list[LikelihoodTask], params: Params) -> None:
    """The step's own check of its metrics says what to do about them."""
    measured = measurement_of(tasks[:1]).measure(jax.tree.map(lambda x: x * math.nan, params))
    assert "multiple_choice/accuracy_per_byte" in measured and all(map(math.isnan, measured.values()))


def test_diverged_weights_end_no_run(tasks: list[LikelihoodTask]) -> None:
    """Finite likelihoods may have an infinite perplexity; of others nothing is measured."""
    for each in read_measured(tasks, None, {}, Letters(), MODEL.max_seq_len, Silent()):
        count = len(each.asked.pairs)

        def scores(nats: float, each: MeasuredTask = each, count: int = count) -> list[Any]:
            return [(nats, False) if each.task.is_greedy else nats] * count

        for bad in (-math.inf, math.inf, math.nan):
            assert all(map(math.isnan, each.metrics([*scores(-1.0)[1:], *scores(bad)[:1]]).values()))
        huge = each.metrics(scores(-1e6))
        assert not any(map(math.isnan, huge.values()))
        assert huge.get("bits_per_byte/perplexity", math.inf) == math.inf
    assert TextScore(nats=1e6, num_tokens=1, num_bytes=4).perplexity == math.inf


def test_programs_are_prepared_once_in_a_process() -> None:
    prepared, clock = [], SimpleNamespace(paused=lambda cause: nullcontext())
    hook = Evaluate(5, lambda params: {}, prepared.append)
    for step in (10, 5):  # the second time the run has gone back to a checkpoint
        run: Any = SimpleNamespace(step=step, clock=clock, state=step, measured_weights=step)
        hook.start(run)
    assert prepared == [10]


def test_a_limit_takes_the_same_rows_in_any_order_and_says_of_how_many(tasks: list[LikelihoodTask]) -> None:
    notes = Notes()
    (found,) = read_measured(tasks[:1], 30, {}, Letters(), MODEL.max_seq_len, notes)
    assert found.rows == "30 of 100 rows" and len(found.asked.pairs) == 90
    assert notes.texts == ["task 'multiple_choice': measured while training on 30 of 100 rows"]
    rows = read_rows(tasks[0], {}).rows
    shuffled = random.Random(1).sample(rows, len(rows))
    assert {row.id for row in chosen(shuffled, 30)} == {row.id for row in chosen(rows, 30)}
    assert chosen(rows, 200) == rows and len(chosen(rows, None)) == 100


def test_rows_are_checked_before_training(tmp_path: Path) -> None:
    fine = [{"query": f"q{n}", "choices": ["a", "b"], "gold": 0} for n in range(3)]
    long = [{"query": "q" * 80 + str(n), "choices": ["a", "b"], "gold": 0} for n in range(3)]
    notes = Notes()
    read_measured([task(tmp_path, "multiple_choice", [*fine, long[0], fine[0]], max_unusable=0.5)], None, {},
                  Letters(), MODEL.max_seq_len, notes)  # fmt: skip
    first, _, last = notes.texts
    assert "1 of 5 rows cannot be used and are skipped" in first
    assert "1 are too long for the context; first: multiple_choice.jsonl:4: 83 tokens" in last
    with pytest.raises(ResultError, match=r"0 scored example\(s\)"):
        measurement_of([task(tmp_path, "multiple_choice", long)])
    with pytest.raises(ConfigError, match="rows cannot be used"):
        measurement_of([task(tmp_path, "multiple_choice", [*fine, {}])])
