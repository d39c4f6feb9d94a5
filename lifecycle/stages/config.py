"""The run config: every room's section in one tree. Cheap to import: nothing here loads a library that computes."""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from lifecycle.core.config import Section
from lifecycle.data.config import DataConfig
from lifecycle.evals.config import EvalConfig
from lifecycle.inference.defaults import SamplingConfig
from lifecycle.model.config import ModelConfig
from lifecycle.ops.config import GateConfig
from lifecycle.ops.cost import PriceConfig
from lifecycle.ops.request_log import RequestLogConfig
from lifecycle.parallel.axes import MeshConfig, require_cuts_rows, require_divides
from lifecycle.serving.config import ServeConfig
from lifecycle.text.tokenizer import TokenizerConfig
from lifecycle.training.config import CrossEntropyConfig, NextTokenConfig, SftConfig, TrainConfig
from lifecycle.training.objectives.registry import objective_kind
from lifecycle.weights.families.lookup import family_of


class RowsConfig(Section):
    """Rows for SFT and preference tuning: made from the documents' docstrings, the user's own JSONL files, or both."""

    docstrings: bool = True
    sft: tuple[Path, ...] = ()  # columns: messages; or prompt, completion
    preference: tuple[Path, ...] = ()  # columns: prompt, chosen, rejected
    heldout_fraction: float = Field(default=0.05, gt=0, lt=1)  # of the user's own rows, by hash of their content


class ExportConfig(Section):
    """The bundle that a run ends in."""

    # How its model is sampled where a request does not say; None: as the bundle that the run started from, else greedy.
    sampling: SamplingConfig | None = None


class RunConfig(Section):
    """One complete run, from documents to a served model."""

    name: str = Field(min_length=1)
    root: Path = Path("runs")  # artifacts, registry and logs of the run go to `<root>/<name>`
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    rows: RowsConfig = RowsConfig()
    tokenizer: TokenizerConfig
    model: ModelConfig
    mesh: MeshConfig = MeshConfig()
    pretrain: NextTokenConfig
    sft: SftConfig
    prefer: SerializeAsAny[TrainConfig]
    evaluate: EvalConfig
    export: ExportConfig = ExportConfig()
    gate: GateConfig = GateConfig()
    price: PriceConfig = PriceConfig()
    serve: ServeConfig = ServeConfig()
    requests: RequestLogConfig = RequestLogConfig()

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def origin(self) -> Path | None:
        """The bundle whose weights the last stage goes back to: the latest `from`; None for a run from fresh ones."""
        start = self.prefer.start or self.sft.start or self.pretrain.start
        return None if start is None else Path(start)

    @field_validator("prefer", mode="before")
    @classmethod
    def _settings_of_its_objective(cls, tree: Any) -> Any:
        return (
            objective_kind(tree.get("objective", "dpo")).settings.model_validate(tree)
            if isinstance(tree, dict)
            else tree
        )

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        self.model.check_mesh(self.mesh)
        family_of(self.model).config_to(self.model)  # what no export could say is told now, not after the training
        for name in ("pretrain", "sft", "prefer"):
            train: TrainConfig = getattr(self, name)
            if train.model is not None:
                raise ValueError(f"{name}.model={train.model}: this run has one model; leave it out")
            rows = train.global_batch_size // train.grad_accum
            require_divides(self.mesh, "loss_rows", rows, f"{name}.global_batch_size / {name}.grad_accum")
            chunks = train.loss_chunks if isinstance(train, CrossEntropyConfig) else 1
            if self.model.vocab_size % (chunks * self.mesh.tensor):
                raise ValueError(
                    f"{name}.loss_chunks={chunks} and mesh.tensor={self.mesh.tensor} do not divide "
                    f"model.vocab_size={self.model.vocab_size}"
                )
            require_cuts_rows(self.mesh, train.seq_len, f"{name}.seq_len")
            names = self.model.remat_names(self.mesh)
            if unknown := set(train.remat or {}) - set(names):
                raise ValueError(
                    f"{name}.remat: this model has no {', '.join(sorted(unknown))} on this mesh; "
                    f"it has {', '.join(names)}"
                )
            if train.seq_len > self.model.max_seq_len:
                raise ValueError(
                    f"{name}.seq_len={train.seq_len} is above model.max_seq_len={self.model.max_seq_len}; raise that"
                )
        return self
