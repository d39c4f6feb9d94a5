"""Settings of stages that learn from rewards: which prompts, how they are sampled and scored, what becomes of it.

Importing this registers the objectives `grpo`, `rloo` and `reinforce_plus_plus`, which differ in their defaults, and
`ppo`.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from lifecycle.core.config import Section
from lifecycle.core.numbers import LARGEST_INT32, Float32, Size
from lifecycle.model.config import ModelConfig
from lifecycle.rl.episode_config import EpisodesConfig
from lifecycle.rl.reward import RewardConfig
from lifecycle.rl.rewards import Rewards
from lifecycle.training.objectives.registry import PACKAGE, ObjectiveKind, register
from lifecycle.training.policy import PolicyConfig, PolicyLoss, ValueConfig

MAX_KEPT = 1024  # ids of a token's distribution; 16,384 positions with so many take 67 MB

type Advantage = Literal["grpo", "grpo_batch", "dr_grpo", "rloo", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]


class PartialConfig(Section):
    """Completions in pieces: a step takes the groups that are whole first, and the others go on with later weights."""

    prompts_in_flight: Size  # groups that are sampled at a time, more than a step takes
    tokens: Size  # of each completion before it is looked at again which groups are whole


class RolloutConfig(PolicyConfig):
    """What all stages that sample completions and learn from their rewards have in common."""

    HOW_COMPUTED: ClassVar[frozenset[str]] = PolicyConfig.HOW_COMPUTED | {"num_slots"}
    HOW_MEASURED: ClassVar[frozenset[str]] = PolicyConfig.HOW_MEASURED | {"eval_prompts", "max_kl"}
    HOW: ClassVar[frozenset[str]] = PolicyConfig.HOW | HOW_COMPUTED | HOW_MEASURED
    rewards: tuple[SerializeAsAny[RewardConfig], ...] = ()
    reward: str | None = None  # a stage with the objective `reward_model`, whose score is added
    reward_weight: Float32 = 1.0
    episodes: EpisodesConfig | None = None  # a completion is a conversation with an environment, or with tools
    prompts_per_step: Size = 16
    group_size: Size = 8  # samples of each prompt; TRL's num_generations
    max_prompt_tokens: Size = 256  # longer prompts are dropped, and counted
    # Tokens are sampled from the `top_k` likeliest (0: all), of these from the likeliest that make up `top_p`, and of
    # these from those that have at least the share `min_p` of the likeliest one's probability. A step learns among the
    # ids that each token was sampled from, so these are kept: that needs a bound.
    top_k: int = Field(default=0, ge=0, le=MAX_KEPT)
    top_p: Float32 = Field(default=1.0, gt=0, le=1)
    min_p: Float32 = Field(default=0.0, ge=0, le=1)
    num_iterations: Size = 1  # steps on the same completions
    # Steps that the weights may take between the sampling of completions and the step that learns from them. Above 0,
    # rewards are found while devices sample and learn; ratios are then of the policy and the one that sampled.
    max_staleness: int = Field(default=0, ge=0, le=LARGEST_INT32)
    partial: PartialConfig | None = None
    # Completions that are cut off at `max_completion_tokens` teach nothing (DAPO's overlong filtering).
    mask_truncated: bool = False
    num_slots: Size = 32  # completions that are sampled at a time
    eval_prompts: Size = 64  # held-out prompts that are answered, greedily, at each measurement
    # A divergence from the initial model above this, in nats per token, is remarked upon; changes nothing else.
    max_kl: Float32 = Field(default=1.0, gt=0)

    @property
    def longest_row(self) -> int:
        """The most tokens that a prompt may have."""
        return self.max_prompt_tokens

    def epoch_rows(self, units: int, rows: int) -> float:
        """As `TrainConfig.epoch_rows`: until each prompt has been answered once."""
        return units / self.prompts_per_step * self.num_iterations * self.global_batch_size

    def is_new_batch(self, number: int) -> bool:
        """Whether it is the first one of its completions."""
        return number % self.num_iterations == 0

    @property
    def fits(self) -> int:
        """Completions that fit the step's rows, whatever their lengths."""
        return self.seq_len // (self.max_prompt_tokens + self.max_completion_tokens) * self.global_batch_size

    @property
    def reward_functions(self) -> Rewards | None:
        """The rewards but a model's, imported; None without any."""
        return Rewards(self.rewards) if self.rewards else None

    @model_validator(mode="after")
    def _check_rollouts(self) -> Self:
        is_rewarded = self.episodes is not None and self.episodes.environment is not None
        if not self.rewards and self.reward is None and not is_rewarded:
            raise ValueError("no rewards: give some, such as rewards: [{name: maths}], or a stage with reward: NAME")
        if self.episodes is not None and self.episodes.log_name in [reward.log_name for reward in self.rewards]:
            name = self.episodes.log_name
            raise ValueError(f"a reward and the episodes are both logged as {name!r}; give the reward a `label`")
        if self.reward is None and self.reward_weight != 1:
            raise ValueError("reward_weight is a setting of reward: NAME; leave it out")
        if self.max_kl != 1 and not self.beta:
            raise ValueError("max_kl is of the divergence, measured with beta above 0; set beta, or leave it out")
        if not self.top_k and (self.top_p < 1 or self.min_p > 0):
            raise ValueError(
                "top_p and min_p need top_k, the most ids that a token is sampled from: a step keeps them and learns "
                f"among them; set top_k, such as 64 (at most {MAX_KEPT})"
            )
        if self.max_staleness and self.num_iterations > 1:
            raise ValueError(
                f"max_staleness={self.max_staleness} is for one step on each completion; set num_iterations to 1"
            )
        if self.max_staleness and self.episodes is not None:
            raise ValueError(
                "max_staleness above 0 finds rewards while the next episodes are played, in the same environments; set "
                "it to 0"
            )
        if self.partial is not None:
            self._check_partial(self.partial)
        num = self.prompts_per_step * self.group_size
        if self.fits < num:
            longest = self.max_prompt_tokens + self.max_completion_tokens
            raise ValueError(
                f"{num} completions of up to {longest} tokens with their prompts do not fit global_batch_size="
                f"{self.global_batch_size} rows of seq_len={self.seq_len}, which hold {self.fits}; raise seq_len (a "
                "multiple of that length) or global_batch_size, or lower prompts_per_step or group_size"
            )
        return self

    def _check_partial(self, partial: PartialConfig) -> None:
        if not self.max_staleness:
            raise ValueError(
                "partial: completions go on with later weights, so they need a bound: set max_staleness, such as 1"
            )
        most = self.prompts_per_step * (self.max_staleness + 1)
        if not self.prompts_per_step < partial.prompts_in_flight <= most:
            raise ValueError(
                f"partial: prompts_in_flight={partial.prompts_in_flight} must be above prompts_per_step="
                f"{self.prompts_per_step}, and at most {most}: no more can be trained on within max_staleness="
                f"{self.max_staleness}"
            )
        if partial.tokens >= self.max_completion_tokens:
            raise ValueError(
                f"partial: tokens={partial.tokens} must be below max_completion_tokens={self.max_completion_tokens}, "
                "or no completion is left to go on with"
            )


class GrpoConfig(RolloutConfig):
    """Group-relative policy optimisation: each prompt is sampled several times, and samples are compared."""

    objective: str = "grpo"
    advantage: Advantage = "grpo"
    # Rounds of prompts that a step may sample until it has `prompts_per_step` groups whose rewards differ (DAPO's
    # dynamic sampling, verl's name); 1: a step takes the first round as it is.
    max_num_gen_batches: Size = 1

    @model_validator(mode="after")
    def _check_advantage(self) -> Self:
        if self.max_num_gen_batches > 1 and self.advantage == "reinforce_plus_plus":
            raise ValueError("max_num_gen_batches above 1 leaves out groups, and reinforce_plus_plus knows none")
        if self.max_num_gen_batches > 1 and self.max_staleness:
            raise ValueError(
                "max_num_gen_batches above 1 needs a round's rewards before the next round, so nothing would overlap; "
                "set max_staleness to 0"
            )
        if self.advantage != "reinforce_plus_plus" and self.group_size < 2:
            raise ValueError(f"advantage={self.advantage} compares samples of a prompt; set group_size to 2 or more")
        return self


class RlooConfig(GrpoConfig):
    """REINFORCE with a leave-one-out baseline."""

    objective: str = "rloo"
    loss: PolicyLoss = "rloo"
    advantage: Advantage = "rloo"
    use_kl_in_reward: bool = True
    kl: Literal["k1", "k2", "k3"] = "k1"  # whose sum over a completion is its log-ratio to the initial model


class ReinforceConfig(GrpoConfig):
    """REINFORCE++: advantages are normalised over the batch."""

    objective: str = "reinforce_plus_plus"
    advantage: Advantage = "reinforce_plus_plus"
    group_size: Size = 1


class PpoConfig(RolloutConfig):
    """Proximal policy optimisation: a value function, trained beside the policy, gives advantages of each token."""

    objective: str = "ppo"
    group_size: Size = 1
    num_iterations: Size = 4
    value: ValueConfig = ValueConfig()

    def trained(self, model: ModelConfig) -> ModelConfig:
        """The model with a score, which is the value function."""
        return super().trained(model).model_copy(update={"has_score": True})


FORMULA = f"{PACKAGE}.policy:policy_gradient", f"{PACKAGE}.policy:of_batch"
for _config in (GrpoConfig, RlooConfig, ReinforceConfig):
    register(
        ObjectiveKind(str(_config.model_fields["objective"].default), _config, "prompts", *FORMULA, models=("reward",))
    )
register(ObjectiveKind("ppo", PpoConfig, "prompts", f"{PACKAGE}.ppo:ppo", FORMULA[1], models=("reward",)))
