"""The stages that read the run's rows: what each makes of a row, and what it cannot use.

What must hold: whatever a stage would say of a row when its turn comes, it says here.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from lifecycle.rl.config import RolloutConfig
from lifecycle.rl.openings import Conversations, Openings
from lifecycle.rl.rewards import Rewards
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Inputs
from lifecycle.text.chat import ChatError, ChatTemplate
from lifecycle.text.interface import Tokenizer
from lifecycle.text.row_encoder import (
    Encoded,
    EncodedPrompt,
    EncodedRow,
    EncodedTaught,
    UnusableRow,
    segments_of,
)
from lifecycle.text.row_files import RowError
from lifecycle.text.rows import fit
from lifecycle.training.config import TrainConfig
from lifecycle.training.distilling import DistillationConfig, DivergenceConfig

ANSWERED = ""  # in place of a reason
TOO_FEW = "raise on_policy.max_prompt_tokens, or rows.max_dropped"


def openings_of(train: TrainConfig, inputs: Inputs, tokenizer: Tokenizer) -> Openings | None:
    """How a stage's rows begin its episodes; None for a stage without any. Raises `ConfigError` and `ChatError`."""
    if not isinstance(train, RolloutConfig) or train.episodes is None:
        return None
    return Openings(train.episodes, Conversations(ChatTemplate.load(inputs["tokenizer"].path, tokenizer)))


@dataclass(frozen=True)
class Reader:
    """A stage that reads rows of a kind, as far as its rows are concerned."""

    stage: str
    train: TrainConfig
    openings: Openings | None
    unasked: Counter[str] = field(default_factory=Counter)  # of rows whose prompts it would answer, by reason

    @cached_property
    def _rewards(self) -> Rewards | None:
        return self.train.reward_functions if isinstance(self.train, RolloutConfig) else None

    def look(self, encoded: Encoded) -> int | str:
        """How many tokens a row has for it, or why it drops the row; raises `RowError` for a prompt that the stage's
        rewards cannot score."""
        if isinstance(encoded, EncodedPrompt):
            row = {**encoded.columns, "prompt": encoded.prompt, "completion": ""}
            if self._rewards is not None and (problem := self._rewards.row_problem(row)):
                raise RowError(f"train.{self.stage}: {problem}")
            encoded = self._opened(encoded)
        try:
            fitted = fit(encoded, self.train.longest_row, self.train.truncation)
        except UnusableRow as reason:
            return str(reason)
        if isinstance(fitted, EncodedTaught):
            self._require_room(fitted)
        self._ask(fitted)
        return sum(len(segment.ids) for segment in segments_of(fitted))

    def _require_room(self, row: EncodedTaught) -> None:
        """Raises `RowError` if tokens have more ids than the stage takes."""
        most = self.train.num_told if isinstance(self.train, DivergenceConfig) else None
        if most is not None and (num := row.told.ids.shape[1]) > most:
            raise RowError(f"a token has {num} teacher_ids, and train.{self.stage}.loss_top_k={most}; raise that")

    def _ask(self, row: Encoded) -> None:
        answering = self.train.answering if isinstance(self.train, DistillationConfig) else None
        if answering is not None and isinstance(row, EncodedRow):
            self.unasked[answering.unasked(row.prompt_ids) or ANSWERED] += 1

    def require_prompts(self, max_dropped: float) -> None:
        """Raises `RowError` if too few prompts can be answered, of a stage that does."""
        unasked = self.unasked.total() - self.unasked[ANSWERED]
        if unasked > max_dropped * self.unasked.total() or (unasked and not self.unasked[ANSWERED]):
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.unasked.items() if reason != ANSWERED)
            raise RowError(
                f"train.{self.stage}: {unasked:,} of {self.unasked.total():,} rows have no prompt that the student can "
                f"answer: {reasons}; {TOO_FEW}"
            )

    def _opened(self, encoded: EncodedPrompt) -> EncodedPrompt:
        try:
            return encoded if self.openings is None else self.openings(encoded)
        except (RowError, ChatError) as error:
            raise RowError(f"train.{self.stage}: {error}") from None

    def close(self) -> None:
        """Ends what it has started."""
        if self.openings is not None:
            self.openings.close()


def readers_of(config: RunConfig, kind: str, inputs: Inputs, tokenizer: Tokenizer) -> list[Reader]:
    """The stages that read rows of a kind."""
    stages = {stage: config.train[stage] for stage in config.reads(kind)}
    return [Reader(stage, train, openings_of(train, inputs, tokenizer)) for stage, train in stages.items()]
