"""Settings of a stage that trains an adapter beside frozen weights. Nothing here imports JAX."""

import math

from pydantic import ConfigDict, Field, field_validator

from lifecycle.core.config import nearest
from lifecycle.model.adapter_config import AdapterConfig
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import adaptable_shapes, num_params
from lifecycle.parallel.axes import RULES, MeshConfig

FRESH, PREVIOUS = "fresh", "previous"
NF4_BLOCK, NF4_BITS = 64, 4.13  # rows; of a weight, with its scales: `kernels/nf4.py`
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # of the folder of an adapter


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

    @field_validator("start")
    @classmethod
    def _is_known(cls, start: str) -> str:
        if start not in (FRESH, PREVIOUS) and "/" not in start:
            known = nearest(start, (FRESH, PREVIOUS))
            raise ValueError(f"from={start}: expected {FRESH}, {PREVIOUS} or a folder: ./{start}{known}")
        return start

    def check(self, weights: str | None, modules_weight: float, base_width: int | None) -> None:
        """Raises `ValueError` for settings of the stage that do not go with an adapter."""
        if weights is not None:
            raise ValueError(
                f"weights={weights} trains the values that a format gives weights, which an adapter leaves as they "
                "are; leave one of them out"
            )
        if modules_weight:
            raise ValueError(
                f"mtp_weight={modules_weight:g} trains the prediction modules, and with an adapter they stay as they "
                "are; leave one of them out"
            )
        if base_width is not None:
            raise ValueError(
                "optimizer.base_width: no rule is known here for an adapter's matrices; leave it out and choose "
                "optimizer.learning_rate for this width"
            )

    def check_model(self, at: str, model: ModelConfig, mesh: MeshConfig) -> None:
        """Raises `ValueError` for targets that the model does not have, and a mesh that cuts blocks of NF4."""
        layers = range(model.num_layers)
        known = list(dict.fromkeys(name for layer in layers for name in adaptable_shapes(model, layer)))
        if unknown := next((name for name in self.targets or () if name not in known), None):
            raise ValueError(
                f"{at}.targets: this model has no {unknown!r} that can be adapted; it has {', '.join(known)}"
            )
        if self.rank > model.d_model:
            raise ValueError(
                f"{at}.rank={self.rank} is above model.d_model={model.d_model}, of which whole matrices are; lower it"
            )
        if self.base is not None:
            _check_blocks(f"{at}.base", model, mesh)


def base_patterns(model: ModelConfig) -> tuple[str, ...]:
    """The patterns of all parameters but an adapter's, and the prediction modules'."""
    return ("embed", "norm", "blocks", *(() if model.tie_embeddings else ("head",)))


def frozen_bytes(model: ModelConfig) -> float:
    """Bytes of the weights beside an adapter, in bfloat16 where they are not in NF4: all but the tables, nearly."""
    base = model.target
    tables = base.vocab_size * base.d_model * (1 if base.tie_embeddings else 2)
    matrices = num_params(base) - tables
    is_nf4 = model.adapter is not None and model.adapter.base == "nf4"
    return 2 * tables + matrices * (NF4_BITS / 8 if is_nf4 else 2)


def _check_blocks(at: str, model: ModelConfig, mesh: MeshConfig) -> None:
    """Checks that each device's shard of a matrix in NF4 has whole blocks of rows."""
    rows = [("embed", model.d_model), ("heads", model.num_heads * model.v_head_dim)]
    if model.moe is None or model.moe.first_dense_layers:
        rows.append(("mlp", model.d_ff))
    if model.moe is not None:
        rows += [("expert_embed", model.d_model), ("mlp", model.moe.d_ff)]
    if model.mla is not None:
        rows += [("embed", size) for size in (model.mla.kv_lora_rank, model.mla.q_lora_rank) if size]
    for axis, size in rows:
        shards = math.prod(getattr(mesh, name) for name in RULES[axis])
        if size % (NF4_BLOCK * shards):
            cut = f", cut into {shards} by the mesh" if shards > 1 else ""
            or_mesh = "" if size % NF4_BLOCK else ", or use a mesh that leaves whole blocks"
            raise ValueError(
                f"{at}=nf4 has blocks of {NF4_BLOCK} rows, and a matrix of the model has {size}{cut}: leave it "
                f"out{or_mesh}"
            )
