"""Settings of the objectives that learn from preferences: pairs of answers, or answers with a label.

Names are those of TRL, which has most of the losses under one roof; the formulas and their papers are in
`training/objectives/`.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from lifecycle.core.numbers import Float32, Size
from lifecycle.model.config import ModelConfig, ReferenceCopy
from lifecycle.model.counts import forward_flops_per_token
from lifecycle.training.adapter import FRESH
from lifecycle.training.config import TrainConfig

type PairLoss = Literal[
    "sigmoid", "cdpo", "hinge", "ipo", "robust", "sigmoid_norm", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "apo_zero", "apo_down", "aot", "aot_unpaired", "discopop", "sft",
]  # fmt: skip
type Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
type Weight = Annotated[Float32, Field(gt=0)]


class ReferencedConfig(TrainConfig):
    """What the objectives that compare the policy with the stage's initial model have in common."""

    # precomputed: its likelihoods of all rows, before the first step, are kept. copy: of each step's rows in that step,
    # by a copy of its weights on the mesh. base: the same by the weights beside the adapter, which cost nothing.
    reference: Literal["precomputed", "copy", "base"] = "precomputed"

    @property
    def needs_reference(self) -> bool:
        """Always."""
        return True

    @property
    def has_own_reference(self) -> bool:
        """Whether the steps compute the reference's likelihoods."""
        return self.reference != "precomputed"

    @property
    def reference_copy(self) -> ReferenceCopy | None:
        """The copy that the stage's state holds."""
        return "fixed" if self.reference == "copy" else None

    def flops_per_token(self, model: ModelConfig, count_causal_half: bool = True) -> float:
        """Those of a step, and of the reference's forward pass in it."""
        own = super().flops_per_token(model, count_causal_half)
        if not self.has_own_reference:
            return own
        return own + forward_flops_per_token(model.trunk, self.seq_len, count_causal_half)

    @model_validator(mode="after")
    def _check_reference(self) -> Self:
        if self.reference == "base" and (self.adapter is None or self.adapter.start != FRESH):
            raise ValueError(
                "reference=base is the weights beside a fresh adapter (adapter.from=fresh), which are the stage's "
                "initial model; set reference=precomputed"
            )
        if self.reference == "copy" and self.adapter is not None:
            raise ValueError("reference=copy: beside an adapter there is one already; set reference=base")
        if self.reference != "precomputed" and self.weights is not None:
            raise ValueError(
                f"reference={self.reference} is not rounded as weights={self.weights} rounds the policy; set "
                "reference=precomputed"
            )
        return self


class DpoConfig(ReferencedConfig):
    """Direct preference optimisation on pairs, relative to the stage's initial model."""

    objective: str = "dpo"
    # TR-DPO: every so many steps the copy becomes alpha * policy + (1 - alpha) * copy; with an alpha of 1 it is
    # replaced (Gorbatovski et al. 2024, "Learn Your Reference Model", equations 3 and 4). None: it stays as it is.
    ref_model_sync_steps: Size | None = None
    ref_model_mixup_alpha: Float32 = Field(default=0.6, gt=0, le=1)
    # A loss, or several with their weights, which are added up: {sigmoid: 0.8, bco_pair: 0.2, sft: 1} is MPO,
    # {sigmoid: 1, sft: 1} RPO. `sft` is the chosen answers' negative log-likelihood per token.
    loss: PairLoss | dict[PairLoss, Weight] = "sigmoid"
    beta: Float32 = Field(default=0.1, gt=0)  # how strongly the policy is kept near the reference; of `ipo`: tau
    # The share of labels that are taken for wrong; of `exo_pair`: epsilon (its paper: 1e-3).
    label_smoothing: Float32 = Field(default=0.0, ge=0, lt=0.5)
    divergence: Divergence = "reverse_kl"  # from the reference (f-DPO)
    divergence_alpha: Float32 = 0.5  # of `alpha_divergence`
    # LD-DPO: the weight of an answer's tokens beyond the length of the shorter one of its pair; None: 1.
    length_alpha: Float32 | None = Field(default=None, ge=0, le=1)
    is_weighted: bool = False  # WPO: a pair counts by how likely its answers are under the policy
    discopop_tau: Float32 = Field(default=0.05, gt=0)

    SMOOTHED: ClassVar[frozenset[str]] = frozenset({"cdpo", "robust", "exo_pair", "aot", "aot_unpaired"})
    ONLY_SMOOTHED: ClassVar[frozenset[str]] = frozenset({"cdpo", "robust", "exo_pair"})
    # Losses of the difference of scores; the others are defined by log ratios, which another divergence does not give.
    BY_SCORES: ClassVar[frozenset[str]] = frozenset(
        {"sigmoid", "cdpo", "hinge", "ipo", "robust", "sigmoid_norm", "exo_pair", "discopop", "sft"}
    )
    OF_BATCH: ClassVar[frozenset[str]] = frozenset({"aot", "aot_unpaired", "sft"})

    @property
    def reference_copy(self) -> ReferenceCopy | None:
        """The copy that the stage's state holds; with `ref_model_sync_steps` it moves."""
        return super().reference_copy if self.ref_model_sync_steps is None else "moving"

    @property
    def losses(self) -> Mapping[PairLoss, float]:
        """The losses with their weights."""
        return dict(self.loss) if isinstance(self.loss, dict) else {self.loss: 1.0}

    @property
    def needs_context(self) -> bool:
        """Whether a pair's loss depends on the other pairs of the batch."""
        return bool(self.OF_BATCH & set(self.losses))

    @model_validator(mode="after")
    def _check_losses(self) -> "DpoConfig":
        names = set(self.losses)
        if not names:
            raise ValueError("loss: name one at least")
        if self.label_smoothing and not names & self.SMOOTHED:
            users = ", ".join(sorted(self.SMOOTHED))
            raise ValueError(f"label_smoothing is a setting of the losses {users}; choose one, or leave it out")
        if not self.label_smoothing and (unsmoothed := names & self.ONLY_SMOOTHED):
            raise ValueError(f"loss {unsmoothed.pop()!r} needs label_smoothing above 0")
        if self.divergence != "reverse_kl" and (others := names - self.BY_SCORES):
            raise ValueError(
                f"loss {others.pop()!r} is defined for divergence=reverse_kl only; with {self.divergence}: "
                f"{', '.join(sorted(self.BY_SCORES))}"
            )
        if self.divergence != "alpha_divergence" and self.divergence_alpha != 0.5:
            raise ValueError("divergence_alpha is a setting of divergence=alpha_divergence")
        if self.is_weighted and "sft" in names:
            raise ValueError("is_weighted weighs pairs, and the loss 'sft' counts tokens; leave one of them out")
        if "discopop" not in names and self.discopop_tau != 0.05:
            raise ValueError("discopop_tau is a setting of the loss 'discopop'")
        if self.ref_model_sync_steps is not None and self.reference != "copy":
            raise ValueError(f"ref_model_sync_steps moves a copy, and reference={self.reference}; set reference=copy")
        if self.ref_model_sync_steps is None and self.ref_model_mixup_alpha != 0.6:
            raise ValueError("ref_model_mixup_alpha is of a copy that moves; set ref_model_sync_steps, or leave it out")
        return self


class OrpoConfig(TrainConfig):
    """Odds-ratio preference optimisation on pairs, without a reference."""

    objective: str = "orpo"
    beta: Float32 = Field(default=0.1, gt=0)  # the odds ratio's weight; the chosen answers' own loss has 1
    # The chosen answers' loss. trl: of prompt and answer, a mean over the batch's tokens. paper: of the answer, a mean
    # over its tokens and then over pairs (Hong et al. 2024, equation 6).
    form: Literal["trl", "paper"] = "trl"

    @property
    def needs_context(self) -> bool:
        """Whether a mean over the batch's tokens is added to one over pairs."""
        return self.form == "trl"


class CpoConfig(TrainConfig):
    """Contrastive preference optimisation on pairs, without a reference; with `loss: simpo`, SimPO."""

    objective: str = "cpo"
    # simpo and ipo compare log-probabilities per token, sigmoid and hinge those of whole answers.
    loss: Literal["sigmoid", "hinge", "ipo", "simpo"] = "sigmoid"
    beta: Float32 = Field(default=0.1, gt=0)
    sft_weight: Float32 = Field(default=1.0, ge=0)  # of the chosen answers' loss per token; SimPO: 0, CPO-SimPO: above
    label_smoothing: Float32 = Field(default=0.0, ge=0, lt=0.5)
    gamma: Float32 = Field(default=0.5, ge=0)  # simpo: by how much a chosen answer should be ahead
    alpha: Float32 = 0.0  # AlphaPO: the exponent of its reward; 0: the log-probability

    @property
    def needs_context(self) -> bool:
        """Whether a mean over the batch's tokens is added to one over pairs."""
        return self.sft_weight > 0

    @model_validator(mode="after")
    def _check_loss(self) -> "CpoConfig":
        if self.label_smoothing and self.loss not in ("sigmoid", "simpo"):
            raise ValueError(f"label_smoothing is a setting of the losses sigmoid and simpo, not of {self.loss}")
        if self.gamma != 0.5 and self.loss != "simpo":
            raise ValueError(f"gamma is a setting of the loss simpo, not of {self.loss}")
        return self


class KtoConfig(ReferencedConfig):
    """Kahneman-Tversky optimisation on answers that are labelled good or bad, relative to the stage's initial model."""

    objective: str = "kto"
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    beta: Float32 = Field(default=0.1, gt=0)
    desirable_weight: Float32 = Field(default=1.0, gt=0)
    undesirable_weight: Float32 = Field(default=1.0, gt=0)

    @property
    def has_others(self) -> bool:
        """Whether rows have mismatched answers, of which the divergence is estimated."""
        return self.loss == "kto"


class ScorerConfig(TrainConfig):
    """What the objectives that learn a score have in common."""

    @property
    def is_scorer(self) -> bool:
        """Whether the stage makes a model that scores texts."""
        return True

    def trained(self, model: ModelConfig) -> ModelConfig:
        """The model with its score."""
        return super().trained(model).model_copy(update={"has_score": True})


class RewardModelConfig(ScorerConfig):
    """A reward model on pairs: the trunk, and a vector that makes a number of an answer's last hidden state."""

    objective: str = "reward_model"
    centre: Float32 = Field(default=0.0, ge=0)  # of the square of a pair's summed rewards; TRL's recommendation: 0.01

    @property
    def reads_margin(self) -> bool:
        """Whether rows may have a margin."""
        return True


class ProcessRewardModelConfig(ScorerConfig):
    """A process reward model on answers in steps: the trunk, and a vector that makes a number of the hidden state of a
    step's last token."""

    objective: str = "process_reward_model"
    last_step_only: bool = False  # the label of an answer's last step is learned alone; held out, all are measured
