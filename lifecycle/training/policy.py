"""Settings of policy-gradient objectives: what a step does with completions and their advantages.

Names are those of TRL and verl. Where completions come from is not said here: `rl/config.py` adds it.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from lifecycle.core.config import Section
from lifecycle.core.numbers import Float32, Size
from lifecycle.training.config import TrainConfig

type PolicyLoss = Literal["grpo", "bnpo", "dapo", "dr_grpo", "gspo", "cispo", "sapo", "luspo", "vespo", "rloo"]
type Surrogate = Literal["clip", "cispo", "sapo", "vespo"]
type Level = Literal["token", "sequence", "sequence_sum"]
type Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


class LossForm(NamedTuple):
    """A loss by its parts: the surrogate, of which ratio of policies, and how tokens are averaged."""

    surrogate: Surrogate
    level: Level
    aggregation: Aggregation


FORMS: Mapping[PolicyLoss, LossForm] = {
    "grpo": LossForm("clip", "token", "seq-mean-token-mean"),
    "bnpo": LossForm("clip", "token", "token-mean"),
    "dapo": LossForm("clip", "token", "token-mean"),
    "dr_grpo": LossForm("clip", "token", "seq-mean-token-sum-norm"),
    "gspo": LossForm("clip", "sequence", "seq-mean-token-mean"),
    "cispo": LossForm("cispo", "token", "token-mean"),
    "sapo": LossForm("sapo", "token", "seq-mean-token-mean"),
    "luspo": LossForm("clip", "token", "seq-mean-token-sum"),
    "vespo": LossForm("vespo", "token", "token-mean"),
    "rloo": LossForm("clip", "sequence_sum", "seq-mean-token-mean"),
}


class PolicyConfig(TrainConfig):
    """What all policy-gradient objectives have in common."""

    max_completion_tokens: Size = 256
    temperature: Float32 = Field(default=1.0, gt=0)  # of sampling, and of the log-probabilities that are learned
    loss: PolicyLoss = "dapo"
    # Of the loss, if not its own: the ratio of policies by token, or of a completion (`sequence`: its tokens'
    # geometric mean; `sequence_sum`: their product); and how tokens are averaged, by verl's names.
    level: Level | None = None
    aggregation: Aggregation | None = None
    epsilon_low: Float32 = Field(default=0.2, ge=0)  # the ratio is clipped below 1 - this
    epsilon_high: Float32 = Field(default=0.2, ge=0)  # and above 1 + this (DAPO: 0.28); of cispo: the largest ratio
    delta: Float32 | None = Field(default=None, gt=0)  # a ratio is never taken for more than this (two-sided clipping)
    beta: Float32 = Field(default=0.0, ge=0)  # of the divergence from the stage's initial model; 0: none is kept
    kl: Literal["k1", "k2", "k3"] = "k3"  # its estimator
    # Whether it is taken from the rewards, by the policy that drew the completions, instead of added to the loss
    # (verl's name).
    use_kl_in_reward: bool = False
    entropy_weight: Float32 = Field(default=0.0, ge=0)
    sapo_temperature_pos: Float32 = Field(default=1.0, gt=0)
    sapo_temperature_neg: Float32 = Field(default=1.05, gt=0)
    vespo_k_pos: Float32 = Field(default=2.0, ge=0)  # of completions with an advantage of 0 or more
    vespo_lambda_pos: Float32 = Field(default=3.0, gt=0)
    vespo_k_neg: Float32 = Field(default=3.0, ge=0)
    vespo_lambda_neg: Float32 = Field(default=2.0, gt=0)
    # A completion with a negative advantage teaches nothing if its tokens' mean log-ratio of older policy and this one
    # is above this (DeepSeek-V3.2); None: all teach.
    off_policy_mask_threshold: Float32 | None = None
    # The share of the batch's tokens that teach, those of the highest entropy ("Beyond the 80/20 Rule": 0.2).
    top_entropy_quantile: Float32 = Field(default=1.0, gt=0, le=1)
    # The divergence's estimate times the ratio of policies, whose gradient is then unbiased (DeepSeek-V3.2, section
    # 3.1; TRL's default).
    use_bias_correction_kl: bool = True
    # Tokens weigh by the ratio of trainer and sampler, but not more than this (truncated importance sampling).
    sampler_cap: Float32 | None = Field(default=None, gt=0)

    OF_LOSS: ClassVar[Mapping[str, frozenset[str]]] = {
        "epsilon_low": frozenset({"clip"}), "delta": frozenset({"clip"}), "epsilon_high": frozenset({"clip", "cispo"}),
        "sapo_temperature_pos": frozenset({"sapo"}), "sapo_temperature_neg": frozenset({"sapo"}),
        **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), frozenset({"vespo"})),
    }  # fmt: skip

    @property
    def samples(self) -> bool:
        """Always."""
        return True

    @property
    def needs_reference(self) -> bool:
        """Whether the divergence from the initial weights counts."""
        return self.beta > 0

    @property
    def lowers_rewards(self) -> bool:
        """Whether the divergence from the initial weights is taken from the rewards."""
        return self.beta > 0 and self.use_kl_in_reward

    @property
    def form(self) -> LossForm:
        """The loss, with what the settings change of it."""
        own = FORMS[self.loss]
        return LossForm(own.surrogate, self.level or own.level, self.aggregation or own.aggregation)

    @model_validator(mode="after")
    def _check_loss(self) -> "PolicyConfig":
        for name, surrogates in self.OF_LOSS.items():
            is_given = getattr(self, name) != type(self).model_fields[name].default
            if is_given and self.form.surrogate not in surrogates:
                raise ValueError(f"{name} is no setting of loss={self.loss}; leave it out")
        self._check_divergence()
        if self.form.surrogate == "vespo" and self.level not in (None, "token"):
            raise ValueError(f"loss=vespo weighs completions itself, and has no level={self.level}; leave it out")
        return self

    def _check_divergence(self) -> None:
        fields = type(self).model_fields
        for name in ("kl", "use_kl_in_reward", "use_bias_correction_kl"):
            value = getattr(self, name)
            if value != fields[name].default and not self.beta:
                raise ValueError(f"{name}={value} is of the divergence of beta above 0; set beta, or leave it out")
        if self.use_kl_in_reward and not self.use_bias_correction_kl:
            raise ValueError(
                "use_bias_correction_kl is of a divergence in the loss, and use_kl_in_reward takes it from the "
                "rewards; leave one of them out"
            )


class ValueConfig(Section):
    """A value function beside the policy, and advantages by it."""

    gamma: Float32 = Field(default=1.0, gt=0, le=1)  # of later rewards
    lam: Float32 = Field(default=0.95, ge=0, le=1)  # of generalised advantage estimation
    weight: Float32 = Field(default=0.1, gt=0)  # of its loss
    clip: Float32 = Field(default=0.2, gt=0)  # how far a value may move in a step before its loss stops to fall
