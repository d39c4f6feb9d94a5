"""Settings of a stage that trains an adapter beside frozen weights. Nothing here imports JAX."""

from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from lifecycle.core.config import nearest
from lifecycle.model.config import AdapterConfig, ModelConfig
from lifecycle.model.counts import adaptable_shapes

if TYPE_CHECKING:
    from lifecycle.training.config import TrainConfig

FRESH, PREVIOUS = "fresh", "previous"


class AdapterTrainingConfig(AdapterConfig):
    """An adapter that a stage trains, and where its first values come from."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)  # `start` in code, `from` in YAML

    # fresh: it changes nothing at first. What an adapter has learned in the stage before is added to the weights then.
    # previous: that adapter goes on, beside the same weights. Else the folder of one in PEFT's form, relative to the
    # working directory: a path with a slash.
    start: str = Field(default=FRESH, validation_alias="from", min_length=1)

    @property
    def folder(self) -> str | None:
        """The folder of the adapter that the stage starts from."""
        return None if self.start in (FRESH, PREVIOUS) else self.start

    def trained(self, model: ModelConfig) -> ModelConfig:
        """The model with the adapter."""
        own = {name: value for name, value in self if name != "start"}
        return model.model_copy(update={"adapter": AdapterConfig.model_construct(**own)})

    def check(self, train: "TrainConfig") -> None:
        """Raises `ValueError` for settings of the stage that do not go with an adapter."""
        if self.folder is not None and "/" not in self.folder:
            raise ValueError(
                f"adapter.from={self.folder}: expected {FRESH}, {PREVIOUS} or a folder: ./{self.folder}"
                f"{nearest(self.folder, (FRESH, PREVIOUS))}"
            )
        if train.objective == "eagle":
            raise ValueError(
                "adapter: a drafter is trained by itself, beside weights that stay as they are; leave it out"
            )
        if train.weights is not None:
            raise ValueError(
                f"weights={train.weights} trains the values that a format gives weights, which an adapter leaves as "
                "they are; leave one of them out"
            )
        if train.modules_weight:
            raise ValueError(
                f"mtp_weight={train.modules_weight:g} trains the prediction modules, and with an adapter they stay as "
                "they are; leave one of them out"
            )
        if train.optimizer.base_width is not None:
            raise ValueError(
                "optimizer.base_width: no rule is known here for an adapter's matrices; leave it out and choose "
                "optimizer.learning_rate for this width"
            )

    def check_model(self, at: str, model: ModelConfig) -> None:
        """Raises `ValueError` for targets that the model does not have."""
        layers = range(model.num_layers)
        known = list(dict.fromkeys(name for layer in layers for name in adaptable_shapes(model, layer)))
        if unknown := next((name for name in self.targets or () if name not in known), None):
            raise ValueError(
                f"{at}.targets: this model has no {unknown!r} that can be adapted; it has {', '.join(known)}"
            )


def base_patterns(model: ModelConfig) -> tuple[str, ...]:
    """The patterns of all parameters but an adapter's, and the prediction modules'."""
    return ("embed", "norm", "blocks", *(() if model.tie_embeddings else ("head",)))
