"""Settings of training stages: a common class, and a subclass with its own settings for each objective.

`training/objectives/registry.py` maps an objective's name to its class. Nothing here imports JAX, so reading a config
is quick.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, GetJsonSchemaHandler, field_validator, model_validator
from pydantic_core import CoreSchema, PydanticUndefined

from lifecycle.core.config import ConfigError, Section, VariantSection
from lifecycle.core.numbers import Float32, Size
from lifecycle.model.config import ModelConfig, Precision, ReferenceCopy, Remat, WeightFormat
from lifecycle.model.counts import forward_flops_per_token, num_adapter_params, num_params
from lifecycle.model.stacks import MODULES, REFERENCE
from lifecycle.training.adapter import AdapterTrainingConfig, base_patterns, frozen_bytes
from lifecycle.training.checkpoints.config import CheckpointConfig
from lifecycle.training.metric_names import is_of_task
from lifecycle.training.optimizer_config import MOST_STEPS, OptimizerConfig

PERIOD = 1024  # rows in which a mixture's shares are rounded: to a thousandth; the table is 16 KiB


class FaultsConfig(Section):
    """What a stage does about faulty steps, silent corruption and hangs. A step is faulty if its loss or gradient norm
    is not finite or, with `spike_sigma`, a spike."""

    # stop: the run ends, and no later checkpoint is written; skip: the update is left out; rollback: the run goes back
    # to the newest checkpoint that was due and passes over the batches up to the faulty one.
    policy: Literal["stop", "skip", "rollback"] = "stop"
    # A loss or gradient norm this many standard deviations above its running mean is a spike (OLMo-core: 6).
    spike_sigma: Float32 | None = Field(default=None, gt=0)
    # A run stops at this many faulty steps in a row, or when it has gone back to one checkpoint this many times.
    limit: int = Field(default=5, gt=0)
    # Steps between comparisons of two replicas that compute the same rows; needs mesh.replica >= 2.
    replay_every: int | None = Field(default=None, gt=0)
    # Seconds without a step, at least, until a process says where it hangs and asks for a restart. Each process looks
    # once a second, and compiling may take six times as long.
    hang_s: float = Field(default=600, ge=10)

    @property
    def is_guarded(self) -> bool:
        """Whether the step itself looks for faults."""
        return self.policy != "stop" or self.spike_sigma is not None


class MeasuredTasksConfig(Section):
    """Tasks of the run's `evaluate.tasks` that are measured while a stage trains, on the mesh that it trains on."""

    names: tuple[str, ...] = Field(min_length=1)
    every: int | None = Field(default=None, gt=0)  # steps; None: `eval_every`
    # Rows of each, chosen by the hash of their content (nanochat's measurements in training: 500); None: all that the
    # evaluation scores.
    limit: int | None = Field(default=500, ge=2)

    @field_validator("names")
    @classmethod
    def _differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if doubled := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"{doubled!r} is listed twice; list it once")
        return names


class TrainConfig(VariantSection):
    """Settings of every training stage. `global_batch_size` counts rows of `seq_len` positions over all hosts."""

    variant_key: ClassVar[str] = "objective"
    # Not part of a stage's key: how it is computed (which changes the order of float sums, with a `precision` or
    # bfloat16 parameters also what is rounded together, but not what is learned), what
    # is done about faults (a run that stopped at one goes on from its checkpoint under another policy), how it is
    # measured, and how it is logged and saved.
    HOW_COMPUTED: ClassVar[frozenset[str]] = frozenset({"grad_accum", "remat", "loss_chunks", "faults"})
    HOW_MEASURED: ClassVar[frozenset[str]] = frozenset({"eval_every", "eval_bytes", "tasks"})
    HOW: ClassVar[frozenset[str]] = HOW_COMPUTED | HOW_MEASURED | {"log_every", "checkpoint"}
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)  # `start` in code, `from` in YAML

    objective: str  # a registered name; each objective has a subclass of its own
    # Where the weights come from: a stage, a bundle's folder, or `fresh`; None: the previous stage, or fresh weights
    # for the first. `STAGE@STEP` continues that stage's run from its checkpoint: optimizer, data and steps go on,
    # with all of that stage's settings but those given.
    start: str | None = Field(default=None, validation_alias="from")
    # Parameters that stay as they are, by canonical name: `embed`, or all of `blocks.*.attention`.
    freeze: tuple[str, ...] = ()
    # Low-rank matrices are trained beside weights that stay as they are (`training/adapter.py`); None: the weights
    # are.
    adapter: AdapterTrainingConfig | None = None
    model: str | None = None  # which of the run's models, if it has several
    # One of the two: the stage's steps, or how often it goes through its rows; then the steps follow when it has packed
    # them, and `steps` is 0 until then.
    steps: int = Field(default=0, ge=0, le=MOST_STEPS)
    epochs: float | None = Field(default=None, gt=0, le=MOST_STEPS)
    seq_len: Size = Field(gt=1)
    # Of rows that are longer: left out, or cut at their ends or their beginnings (TRL's `truncation_mode`). Token rows
    # are cut from documents, and have no use for it.
    truncation: Literal["drop", "keep_start", "keep_end"] = "drop"
    global_batch_size: Size
    grad_accum: int = Field(default=1, gt=0)
    # Which of a layer's arrays are kept for the backward pass. None: all; {}: its input only; else by name.
    remat: Remat | None = None
    # Of the layers' products and their gradients: 8-bit values with scales of their own (`kernels/quantised.py`). None:
    # the model's compute dtype. Norms, attention's scores, embedding and head are in that always, and so is the model
    # outside of training.
    precision: Precision | None = None
    # The format that the weights will be served in (`serve.weights`). Steps, measurements and exports have the values
    # that it gives them, and what is learned moves the plain ones, which checkpoints keep (`training/served.py`).
    # Activations are not rounded. None: nothing is.
    weights: WeightFormat | None = None
    # Chunks of the vocabulary, over which the loss passes twice to save memory; 1: one pass, by blocks of positions.
    loss_chunks: int = Field(default=1, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    eval_every: int = Field(default=200, gt=0)  # steps between measurements on held-out data
    tasks: MeasuredTasksConfig | None = None  # None: only the evaluation measures them
    log_every: int = Field(default=10, gt=0)
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()

    @classmethod
    def variants(cls) -> Mapping[str, type["TrainConfig"]]:
        """The settings of the registered objectives by name."""
        return SETTINGS

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        made = super().__get_pydantic_json_schema__(schema, handler)
        if "oneOf" not in made:
            return made
        for option in made["oneOf"]:
            if "steps" not in cls.variants()[option["properties"][cls.variant_key]["const"]].fillable:
                option["anyOf"] = [{"required": ["steps"]}, {"required": ["epochs"]}]
        known = {name: value for option in made["oneOf"] for name, value in option["properties"].items()}
        given = {cls.variant_key: {"enum": list(cls.variants())}, "from": {"type": "string", "pattern": "@[0-9]+$"}}
        goes_on = {"type": "object", "properties": known | given, "required": ["from"], "additionalProperties": False}
        return {"anyOf": [made, goes_on]}  # a stage that goes on leaves out what stays

    @property
    def needs_context(self) -> bool:
        """Whether the objective's sums need more than their own rows, if it has a context."""
        return True

    @property
    def needs_reference(self) -> bool:
        """Whether the objective compares with the stage's initial weights, which cannot be fresh ones."""
        return False

    @property
    def reference_copy(self) -> ReferenceCopy | None:
        """The copy of the weights that the stage's state holds for the objective's reference."""
        return None

    @property
    def has_own_reference(self) -> bool:
        """Whether the steps compute the likelihoods of the objective's reference, which no row carries then."""
        return False

    @property
    def has_others(self) -> bool:
        """Whether rows have sequences that are measured beside those that are learned."""
        return False

    @property
    def longest_row(self) -> int:
        """The most tokens that a row of the stage's files may have."""
        return self.seq_len

    @property
    def wraps(self) -> bool:
        """Whether rows are cut where a batch's row ends, instead of packed whole."""
        return False

    @property
    def noise_alpha(self) -> float | None:
        """How much noise steps add to embeddings; None: none."""
        return None

    @property
    def is_scorer(self) -> bool:
        """Whether the stage makes a model that scores texts, instead of one that predicts tokens."""
        return False

    @property
    def reads_margin(self) -> bool:
        """Whether pairs may say by how much an answer is better."""
        return False

    @property
    def others(self) -> tuple[str, ...]:
        """The settings that name models which the stage runs as they are, in its steps or before them."""
        return ()

    def is_new_batch(self, number: int) -> bool:
        """Whether what is in the batch of this number was in none before."""
        return True

    @property
    def held(self) -> tuple[str, ...]:
        """Those of `others` that the stage's steps run beside its own model."""
        return ()

    @property
    def samples(self) -> bool:
        """Whether steps learn from what the stage's own weights say. Batches then have room for answers of the greatest
        length, so that many of their rows are empty."""
        return False

    def epoch_rows(self, units: int, rows: int) -> float:
        """How many rows of batches the stage takes until it has gone once through its `units`, which fill `rows`."""
        return rows

    @property
    def modules_weight(self) -> float:
        """The weight of the prediction modules' loss; 0 for objectives without the setting `mtp_weight`."""
        return getattr(self, "mtp_weight", 0.0)

    def trained(self, model: ModelConfig) -> ModelConfig:
        """The model with what the stage adds to it."""
        return model if self.adapter is None else self.adapter.trained(model)

    def with_copy(self, model: ModelConfig) -> ModelConfig:
        """The model with what the stage's state holds beside it while it runs: the copy for its reference."""
        return model if self.reference_copy is None else model.model_copy(update={"reference": self.reference_copy})

    def computed(self, model: ModelConfig) -> ModelConfig:
        """The model as this stage's steps compute it: prediction modules only if it trains them."""
        return model if self.modules_weight else model.trunk

    def flops_per_token(self, model: ModelConfig, count_causal_half: bool = True) -> float:
        """Matmul FLOPs of a step per token, of `model` as `trained` returns it; attention as in
        `forward_flops_per_token`. A frozen matrix has no gradient, so a backward pass has one product for it."""
        forward = forward_flops_per_token(self.computed(model), self.seq_len, count_causal_half)
        if model.adapter is None:
            return 3 * forward
        scores = forward - forward_flops_per_token(self.computed(model), 0, count_causal_half)
        return 2 * forward + scores + 6 * num_adapter_params(model)

    def state_bytes(self, model: ModelConfig) -> float:
        """Bytes of the parameters, the optimizer's state and a reference's copy; of weights that stay as they are as
        accelerators hold them."""
        trained = num_params(model) if model.adapter is None else num_adapter_params(model)
        frozen = 0.0 if model.adapter is None else frozen_bytes(model)
        return trained * self.optimizer.bytes_per_parameter + frozen + self.copy_bytes * num_params(model.trunk)

    @property
    def copy_bytes(self) -> int:
        """Bytes of a parameter in a reference's copy, as accelerators hold it."""
        return {None: 0, "fixed": 2, "moving": 4}[self.reference_copy]

    def frozen(self, model: ModelConfig) -> tuple[str, ...]:
        """The patterns of the parameters that stay as they are: `freeze`, and modules that the stage does not train:
        without gradients, weight decay alone would change them."""
        is_idle = model.num_mtp_modules and not self.modules_weight
        frozen = (*self.freeze, *((MODULES,) if is_idle else ()), *((REFERENCE,) if model.reference else ()))
        return frozen if self.adapter is None else (*frozen, *base_patterns(model))

    def measured_every(self, metric: str) -> int:
        """Steps between measurements of a task's metric, `TASK/METRIC`, or of another one on held-out data."""
        own = self.tasks.every if self.tasks is not None and is_of_task(metric) else None
        return self.eval_every if own is None else own

    @field_validator("objective")
    @classmethod
    def _is_own(cls, name: str) -> str:
        own = cls.model_fields["objective"].default
        if own is not PydanticUndefined and name != own:
            raise ValueError(f"these are the settings of objective {own!r}")
        return name

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.global_batch_size % self.grad_accum:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a multiple of grad_accum={self.grad_accum}"
            )
        if self.adapter is not None:
            self.adapter.check(self.weights, self.modules_weight, self.optimizer.base_width)
        if self.weights is not None and self.precision is not None:
            raise ValueError(
                f"precision={self.precision} would round weights again that weights={self.weights} has rounded for "
                "serving; leave one of them out"
            )
        if self.checkpoint.best is not None and self.checkpoint.every % self.measured_every(self.checkpoint.best):
            setting = "tasks.every" if is_of_task(self.checkpoint.best) else "eval_every"
            raise ValueError(
                f"checkpoint.best={self.checkpoint.best} is measured every {setting}="
                f"{self.measured_every(self.checkpoint.best)} steps, and "
                f"checkpoint.every={self.checkpoint.every} is not a multiple of that"
            )
        if self.steps == 0 and self.epochs is None:
            raise ValueError("give steps, or epochs: how often the stage goes through its rows")
        if self.steps and self.epochs is not None:
            raise ValueError(f"steps={self.steps} and epochs={self.epochs:g}: leave one out (steps=0 for epochs)")
        if self.steps:
            self._check_schedule()
        return self

    def _check_schedule(self) -> None:
        schedule = self.optimizer.schedule
        if (length := schedule.length(self.steps)) < self.steps:
            raise ValueError(
                f"optimizer.schedule.steps={length} ends before steps={self.steps}; set it to the steps of the "
                "whole run, also in the stage that this one goes on from"
            )
        if schedule.kind != "constant" and schedule.warmup_steps >= length:
            raise ValueError(
                f"optimizer.schedule.warmup_steps={schedule.warmup_steps} leaves no step of steps={length} for the "
                f"{schedule.kind} schedule after the warm-up; set it below {length}, or schedule.kind=constant"
            )

    def resolved(self, epoch_rows: float) -> Self:
        """The settings with their steps, where an epoch is this many rows: `epochs` of them, rounded up to whole steps.

        Raises `ConfigError` if the schedule does not fit these.
        """
        if self.epochs is None:
            return self
        steps = math.ceil(self.epochs * epoch_rows / self.global_batch_size)
        if steps > MOST_STEPS:
            raise ConfigError(f"epochs={self.epochs:g} are {steps:,} steps, and {MOST_STEPS:,} are the most; lower it")
        known = self.model_copy(update={"steps": steps})
        try:
            known._check_schedule()
        except ValueError as error:
            raise ConfigError(f"epochs={self.epochs:g} are {steps:,} steps of this stage: {error}") from None
        return known


SETTINGS: dict[str, type[TrainConfig]] = {}  # by objective; `objectives/registry.py` adds each that is registered
