"""A stage of four steps that learns from rewards, as a process of a job: `python -m tests.rl.toy_job FOLDER SETTINGS`.
SETTINGS is JSON: the mesh, the stage's settings, and after which step it stops."""

import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax

from lifecycle.core import distributed
from lifecycle.core.progress import Silent
from lifecycle.model.params import logical_axes
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh, tree_shardings
from lifecycle.parallel.placement import rows_of_process
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.environment import Environment, Message, Step
from lifecycle.rl.hook import AnswerHeldout, LogRollouts
from lifecycle.rl.measured import measured_columns
from lifecycle.rl.reward_stage import model_reward
from lifecycle.rl.samples import Samples
from lifecycle.testing.families import random_params
from lifecycle.testing.jobs import StopAt
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import build_objective

CALLS = "LIFECYCLE_TEST_CALLS"  # a file: a line with the process's number for each call of the reward


def counted(prompts: Any, completions: list[Any], letter: list[str], **_: Any) -> list[float]:
    """How much of a completion is the row's letter, plus the calling process's number: another one's values differ."""
    own = distributed.process_index()
    with Path(os.environ[CALLS]).open("a") as calls:
        calls.write(f"{own}\n")
    texts = [said if isinstance(said, str) else "".join(m["content"] for m in said) for said in completions]
    return [own + text.count(one) / max(len(text), 1) for text, one in zip(texts, letter, strict=True)]


class Echo(Environment):
    """Says the row's letter until its turns are over; a point for each time that it hears it. Messages and points have
    the process's number: of another process, both would differ."""

    def reset(self, row: Mapping[str, Any]) -> list[Message]:
        with Path(os.environ[CALLS]).open("a") as calls:
            calls.write(f"{distributed.process_index()}\n")
        self.letter = row["letter"]
        return self._messages

    def step(self, answer: Message) -> Step:
        return Step(self._messages, answer["content"].count(self.letter) + distributed.process_index())

    @property
    def _messages(self) -> list[Message]:
        return [{"role": "user", "content": f"{self.letter}{distributed.process_index()}"}]


def trained(out: Path, axes: dict[str, int], own: dict[str, Any], stop: int | None) -> dict[str, Any]:
    """The stats of the job, whose devices are those of all its processes."""
    from tests.rl.toy_policy import MODEL, SEED, prompts, sampler_of, settings  # asks for devices: the job comes first

    mesh, scored = build_mesh(MeshConfig(**axes)), MODEL.model_copy(update={"has_score": True})
    config = settings(rewards=[{"function": f"{__file__}:counted"}], **own)
    placed = jax.jit(lambda: random_params(MODEL), out_shardings=tree_shardings(mesh, logical_axes(MODEL)))()
    by_model = None
    if config.reward is not None:
        judge = jax.jit(lambda: random_params(scored), out_shardings=tree_shardings(mesh, logical_axes(scored)))()
        by_model = model_reward(scored, judge, config, mesh)
    sampler = sampler_of(config, MODEL, by_model, mesh)
    columns = measured_columns(MODEL, config, mesh, placed)
    held = rows_of_process(mesh, config.global_batch_size, jax.process_index())
    batches = PolicyBatches(prompts(), config, sampler, SEED, columns, held)
    samples, progress = Samples(out, Silent()), Silent() if stop is None else StopAt(stop)
    hooks = [LogRollouts(batches, samples, progress), AnswerHeldout(2, sampler, prompts()[:2], samples)]
    job = TrainJob(MODEL, config, mesh, build_objective(MODEL, config), batches, placed, out)
    return run_job(job, progress, hooks)


def main() -> None:
    """Prints the stats as JSON, in the process that writes."""
    distributed.start()
    given = json.loads(sys.argv[2])
    with suppress(KeyboardInterrupt):  # of a stop
        stats = trained(Path(sys.argv[1]), given["mesh"], given["settings"], given.get("stop"))
        if distributed.is_writer():
            print(json.dumps({"hash": stats["params_hash"]}))


if __name__ == "__main__":
    main()
