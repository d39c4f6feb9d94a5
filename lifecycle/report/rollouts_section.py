"""The section on completions that a stage sampled: what was asked, what the model said, and the rewards.

What a model wrote may be anything, of any length: it is shown as text (`html.py`, `markdown.py`), of a long one the
ends, at a few of the measurements.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle.core.runlog import ROLLOUTS, RunLogError, read_log
from lifecycle.report.blocks import Block, Exchanges, Heading, Paragraph, ReportSection, Said
from lifecycle.report.format import count, significant

SHOWN_STEPS = 3  # measurements of a stage: the first, the last, and one between
HEAD, TAIL = 800, 300  # letters of a longer text that are shown
LEAD = (
    "Some of the completions that a stage sampled in the step before a measurement, and the likeliest ones of the same "
    "held-out prompts at each, with their rewards. Long texts are shown without their middle."
)


@dataclass(frozen=True)
class Rollouts:
    """A stage's samples, in the order of their steps; `damage`: why they cannot be read, if so."""

    samples: tuple[dict[str, Any], ...] = ()
    damage: str | None = None

    def of(self, split: str) -> dict[int, list[dict[str, Any]]]:
        """The samples of `train` or `heldout` by step, of as many steps as are shown."""
        by_step: dict[int, list[dict[str, Any]]] = {}
        for sample in self.samples:
            if sample["split"] == split:
                by_step.setdefault(sample["step"], []).append(sample)
        steps = sorted(by_step)
        shown = sorted({round(i * (len(steps) - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)}) if steps else []
        return {steps[place]: by_step[steps[place]] for place in shown}


def read_rollouts(folder: Path) -> Rollouts:
    """The samples in a training stage's folder, whose last line may be half written; none of a stage that samples
    nothing."""
    try:
        return Rollouts(tuple(read_log(folder / ROLLOUTS)))
    except RunLogError as error:
        return Rollouts(damage=str(error))


def rollouts_sections(stages: Sequence[tuple[str, Rollouts]], so_far: str = "") -> Iterator[ReportSection]:
    """Yields the section, if a stage has samples. `so_far`: what its title says of stages that go on."""
    blocks = [block for name, rollouts in stages for block in _of_stage(name, rollouts)]
    if blocks:
        name, title = ("rollouts-so-far", f"Completions {so_far}") if so_far else ("rollouts", "Completions")
        yield ReportSection(name, title, (Paragraph(LEAD), *blocks))


def _of_stage(name: str, rollouts: Rollouts) -> Iterator[Block]:
    if rollouts.damage is not None:
        yield Paragraph(f"{name}: {rollouts.damage}")
    answered, sampled = rollouts.of("heldout"), rollouts.of("train")
    if answered:
        yield Heading(f"{name}: held-out prompts, as training went on")
        yield Exchanges(tuple(_course(answered)))
    for step, samples in sampled.items():
        yield Heading(f"{name}: sampled for step {count(step)}")
        yield Exchanges(tuple((_asked(one), *_answer("model", one)) for one in samples))


def _course(answered: Mapping[int, Sequence[Mapping[str, Any]]]) -> Iterator[Said]:
    """Yields each prompt with its answers: the same prompts, in the same order, at each step."""
    for place in range(min(map(len, answered.values()))):
        answers = (
            part for step, samples in answered.items() for part in _answer(f"after step {count(step)}", samples[place])
        )
        yield (_asked(next(iter(answered.values()))[place]), *answers)


def _asked(sample: Mapping[str, Any]) -> tuple[str, str]:
    return "prompt", shortened(sample["prompt"])


def _answer(who: str, sample: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    return (who, shortened(sample["completion"])), ("reward", _rewards(sample))


def _rewards(sample: Mapping[str, Any]) -> str:
    total, each = sample["reward"], sample["rewards"]
    said = "none" if total is None else significant(total)
    parts = ", ".join(f"{name} {'none' if value is None else significant(value)}" for name, value in each.items())
    return f"{said} ({parts})" if parts else said


def shortened(text: str) -> str:
    """The text, or its ends and how much is between."""
    if len(text) <= HEAD + TAIL:
        return text
    return f"{text[:HEAD]}\n[{count(len(text) - HEAD - TAIL)} letters]\n{text[-TAIL:]}"
