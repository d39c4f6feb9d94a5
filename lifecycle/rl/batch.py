"""What rewards see: completions with their prompts, token ids and the columns of their rows; and what they return."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

type Message = Mapping[str, Any]
type Text = str | Sequence[Message]  # a prompt or a completion: plain, or messages


class RewardError(ValueError):
    """A reward that cannot be had, without which training must not go on; the message names function and row."""


@dataclass(frozen=True)
class TrainerState:
    """Where the run is, under TRL's names, for rewards that change with it."""

    global_step: int = 0
    max_steps: int = 0


@dataclass(frozen=True)
class RewardBatch:
    """Completions to score. All sequences have one item per completion, samples of a prompt side by side; a column is
    repeated for each sample, as TRL does."""

    prompts: Sequence[Text]
    completions: Sequence[Text]
    completion_ids: Sequence[Sequence[int]]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    state: TrainerState = TrainerState()
    environments: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        lengths |= {"prompts": len(self.prompts), "completion_ids": len(self.completion_ids)}
        wrong = [f"{name} {length}" for name, length in lengths.items() if length != len(self.completions)]
        if wrong:
            raise RewardError(f"{len(self.completions)} completions, but {', '.join(wrong)}")

    def __len__(self) -> int:
        return len(self.completions)

    @property
    def outputs(self) -> list[str]:
        """What verifiers read of each completion: the text, or that of the model's last message."""
        return [last_text(completion) for completion in self.completions]

    def row(self, place: int) -> dict[str, Any]:
        """One completion with its prompt and columns."""
        columns = {name: column[place] for name, column in self.columns.items()}
        return columns | {"prompt": self.prompts[place], "completion": self.completions[place]}

    def alone(self, place: int) -> "RewardBatch":
        """The batch of one completion."""
        columns = {name: [column[place]] for name, column in self.columns.items()}
        environments = None if self.environments is None else [self.environments[place]]
        prompts, completions, ids = [self.prompts[place]], [self.completions[place]], [self.completion_ids[place]]
        return RewardBatch(prompts, completions, ids, columns, self.state, environments)


def last_text(completion: Text) -> str:
    """The text that a completion ends with: of messages, the content of the assistant's last one, without thoughts that
    are a member of their own; empty if it only calls tools."""
    if isinstance(completion, str):
        return completion
    said = [message.get("content") for message in completion if message.get("role", "assistant") == "assistant"]
    content = said[-1] if said else ""
    if isinstance(content, str) or content is None:
        return content or ""
    return "".join(part.get("text", "") for part in content)


def shown(text: Text) -> str:
    """A prompt or a completion for a message of ours."""
    whole = text if isinstance(text, str) else "\n".join(f"{m.get('role', '?')}: {m.get('content')}" for m in text)
    return whole if len(whole) <= 500 else f"{whole[:250]} ... {whole[-250:]}"


@dataclass(frozen=True)
class Scores:
    """What became of a batch.

    `values[name]`: a reward's values, NaN where it says nothing; `totals`: their weighted sums, NaN where none says
    anything, so that such a completion can be left out. `faults[name]`: how often a value could not be found, by
    reason. `extra`, `metrics`: what functions logged, columns and scalars.
    """

    values: Mapping[str, list[float]]
    totals: list[float]
    faults: Mapping[str, Counter[str]]
    extra: Mapping[str, list[Any]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """JSON-ready, without `extra`."""
        faults = {name: dict(reasons) for name, reasons in self.faults.items()}
        return {"values": dict(self.values), "totals": self.totals, "faults": faults, "metrics": dict(self.metrics)}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Scores":
        """The reverse."""
        faults = {name: Counter(reasons) for name, reasons in plain["faults"].items()}
        return cls(plain["values"], plain["totals"], faults, metrics=plain["metrics"])

    @property
    def notes(self) -> list[str]:
        """The faults in words, for the terminal."""
        return [
            f"reward {name}: {count} of {len(self.totals)} completions: {reason}"
            for name, reasons in self.faults.items()
            for reason, count in reasons.most_common()
        ]

    @property
    def unscored(self) -> int:
        """How many completions no reward says anything of."""
        return sum(math.isnan(total) for total in self.totals)
