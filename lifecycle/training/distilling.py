"""Settings of stages that learn a teacher's distributions. Nothing here imports JAX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from pydantic import Field, field_validator, model_validator

from lifecycle.core.config import Section
from lifecycle.core.numbers import Float32, Size
from lifecycle.training.config import TrainConfig

MAX_TOP_K = 1024  # ids of a teacher's distribution; 16,384 positions with so many take 134 MB


class OnPolicyConfig(Section):
    """Steps on the student's own answers to the rows' prompts, instead of the rows' answers (Agarwal et al. 2024,
    "On-Policy Distillation of Language Models", algorithm 1)."""

    HOW_COMPUTED: ClassVar[frozenset[str]] = frozenset({"num_slots"})
    share: float = Field(gt=0, le=1)  # of the steps, drawn for each by the run's seed; TRL's `lmbda`
    max_completion_tokens: Size = 256
    max_prompt_tokens: Size | None = None  # longer ones are not sampled, and counted; None: what `seq_len` leaves
    prompts_per_step: Size | None = None  # one answer to each; None: as many as fit the step's rows in any case
    # Tokens are sampled at this temperature from the `top_k` likeliest (0: all), of these from the likeliest that make
    # up `top_p`, and of these from those that have at least the share `min_p` of the likeliest one's probability.
    temperature: Float32 = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0, le=MAX_TOP_K)
    top_p: Float32 = Field(default=1.0, gt=0, le=1)
    min_p: Float32 = Field(default=0.0, ge=0, le=1)
    num_slots: Size = 32  # answers that are sampled at a time

    def key(self) -> dict[str, object]:
        """What decides the answers."""
        return {name: value for name, value in self.plain().items() if name not in self.HOW_COMPUTED}


@dataclass(frozen=True)
class Answering:
    """How a stage's own answers are sampled: its `OnPolicyConfig`, with what follows from the stage."""

    share: float
    max_completion_tokens: int
    max_prompt_tokens: int
    prompts_per_step: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    num_slots: int

    def unasked(self, prompt_ids: Sequence[int]) -> str | None:
        """Why a prompt cannot be answered; None if it can."""
        if not prompt_ids:
            return "nothing before what is learned"
        is_long = len(prompt_ids) > self.max_prompt_tokens
        return f"prompt longer than on_policy.max_prompt_tokens={self.max_prompt_tokens}" if is_long else None


class DivergenceConfig(TrainConfig):
    """What stages have in common that learn a teacher's distributions."""

    # Of the generalised Jensen-Shannon divergence. 0: forward KL, which covers all that the teacher may say; 1: reverse
    # KL, which leaves out what it would not.
    beta: Float32 = Field(default=0.5, ge=0, le=1)
    # Both models' logits are divided by it. Gradients are not multiplied by its square (as in TRL; Hinton et al. 2015
    # do that), so a higher one asks for a higher learning rate.
    temperature: Float32 = Field(default=1.0, ge=0.01, le=1000)
    sft_weight: Float32 = Field(default=0.0, ge=0)  # of the rows' own tokens' negative log-likelihood, which is added
    # Of a divergence over few ids: what both models leave for other ids is one more outcome; false: both are normalised
    # over the ids.
    loss_add_tail: bool = True

    @property
    def num_told(self) -> int | None:
        """The most ids that rows have of a token's distribution; None: a teacher in the steps has all."""
        return None


class DistillationConfig(DivergenceConfig):
    """Distillation on the assistant's tokens of chat rows: a divergence from the distributions of a teacher, which runs
    in the same steps, or has been asked before, and stays as it is."""

    objective: str = "distillation"
    teacher: str  # a training stage of the run, or a bundle's folder or address
    # The ids below it are the same tokens in both vocabularies, which is checked; others are left out of both
    # distributions, and no row may have one. None: all ids are the same.
    shared_ids: Size | None = None
    # The teacher's likeliest ids at each learned token: it is asked once, before the first step, which then has no
    # teacher. The divergence is over these ids. None: the teacher runs in the steps, and it is over all.
    loss_top_k: int | None = Field(default=None, gt=0, le=MAX_TOP_K)
    on_policy: OnPolicyConfig | None = None  # None: all steps are on the rows' answers

    @property
    def num_told(self) -> int | None:
        """As many as the teacher is asked for before."""
        return self.loss_top_k

    @property
    def others(self) -> tuple[str, ...]:
        """The teacher."""
        return ("teacher",)

    @property
    def held(self) -> tuple[str, ...]:
        """The teacher, if steps ask it."""
        return self.others if self.loss_top_k is None else ()

    @property
    def answering(self) -> Answering | None:
        """How the student's own answers are sampled, if they are."""
        own = self.on_policy
        if own is None:
            return None
        prompt = self.seq_len - own.max_completion_tokens if own.max_prompt_tokens is None else own.max_prompt_tokens
        fitting = self.seq_len // max(1, prompt + own.max_completion_tokens) * self.global_batch_size
        filled = {"max_prompt_tokens": prompt, "prompts_per_step": own.prompts_per_step or fitting}
        return Answering(**{**dict(own), **filled})

    @property
    def samples(self) -> bool:
        """Whether steps learn from what the stage's own weights say."""
        return self.on_policy is not None

    def epoch_rows(self, units: int, rows: int) -> float:
        """As `TrainConfig.epoch_rows`: until each row's answer was learned, or each prompt answered."""
        if (own := self.answering) is None:
            return rows
        if own.share == 1:
            return units / own.prompts_per_step * self.global_batch_size
        return rows / (1 - own.share)

    @model_validator(mode="after")
    def _check_top_k(self) -> Self:
        if self.loss_top_k is None and not self.loss_add_tail:
            raise ValueError("loss_add_tail is of a divergence over few ids; set loss_top_k, or leave it out")
        if self.loss_top_k is None:
            return self
        if self.on_policy is not None:
            raise ValueError(
                f"loss_top_k={self.loss_top_k} asks the teacher once, before the first step, and the student's own "
                "answers are not known then; leave out loss_top_k, or on_policy"
            )
        if self.shared_ids is not None and self.loss_add_tail:
            raise ValueError(
                "loss_add_tail takes what is left of whole distributions, and shared_ids compares parts of them; set "
                "loss_add_tail=false, or leave out loss_top_k"
            )
        return self

    @model_validator(mode="after")
    def _check_answers(self) -> Self:
        if (own := self.answering) is None:
            return self
        longest = own.max_prompt_tokens + own.max_completion_tokens
        if own.max_prompt_tokens < 1 or longest > self.seq_len:
            raise ValueError(
                f"on_policy: an answer of up to max_completion_tokens={own.max_completion_tokens} behind its prompt "
                f"does not fit seq_len={self.seq_len}; lower on_policy.max_completion_tokens or max_prompt_tokens"
            )
        if own.prompts_per_step > (fit := self.seq_len // longest * self.global_batch_size):
            raise ValueError(
                f"on_policy.prompts_per_step={own.prompts_per_step}: answers of up to {longest} tokens with their "
                f"prompts do not fit global_batch_size={self.global_batch_size} rows of seq_len={self.seq_len}, which "
                f"hold {fit}; lower it, or max_prompt_tokens or max_completion_tokens"
            )
        if self.sft_weight:
            raise ValueError(
                "sft_weight raises the likelihood of a step's answers, and with on_policy these are the student's own; "
                "set it to 0"
            )
        return self


class OfflineDistillationConfig(DivergenceConfig):
    """Distillation from rows of tokens that have a teacher's likeliest ids themselves."""

    objective: str = "offline_distillation"
    loss_top_k: int = Field(gt=0, le=MAX_TOP_K)  # the most ids that a token has

    @property
    def num_told(self) -> int:
        """The most ids that a token has."""
        return self.loss_top_k

    @field_validator("truncation")
    @classmethod
    def _is_whole(cls, truncation: str) -> str:
        if truncation != "drop":
            raise ValueError("a row of tokens is learned whole; cut it before the teacher is asked, or leave this out")
        return truncation
