"""What a run file says, section by section, and what follows from it: models, the weights that stages start from, rows.

Whether such a run is possible is decided in `stages/config.py`. Cheap to import: nothing here needs a numerical
library.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
)

import lifecycle.rl.config  # noqa: F401 - registers the objectives that learn from rewards
from lifecycle.core.config import ConfigError, Section, nearest
from lifecycle.core.one_or_named import one_or_named
from lifecycle.core.store import is_url, local_folder, path_or_url
from lifecycle.data.config import DataConfig, DecontaminationConfig, ShardsConfig
from lifecycle.evals.config import EvalConfig, WinRatesConfig
from lifecycle.evals.tasks import TaskConfig
from lifecycle.inference.defaults import SamplingConfig
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import forward_flops_per_token
from lifecycle.ops.config import GateConfig
from lifecycle.ops.cost import PriceConfig
from lifecycle.ops.request_log import RequestLogConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.serving.config import ServeConfig
from lifecycle.stages.checks import (
    rows_stage,
)
from lifecycle.stages.names import DOCUMENTS, of_corpus
from lifecycle.stages.origins import (
    Start,
    bundle_model,
    in_order,
    lineage,
    named_models,
    starts_of,
)
from lifecycle.text.config import DOCSTRING_KINDS, RowsConfig
from lifecycle.text.row_columns import KINDS
from lifecycle.text.tokenizer import TokenizerConfig
from lifecycle.training.config import TrainConfig
from lifecycle.training.likelihood import SftConfig
from lifecycle.training.objectives.registry import objective_kind


class EvaluateConfig(EvalConfig):
    """The tasks, and which training stages are evaluated on them."""

    after: tuple[str, ...] | None = None  # None: all; the exported one always, for the promotion gate
    mesh: MeshConfig | None = None  # None: the run's
    win_rates: WinRatesConfig | None = None


class ExportConfig(Section):
    """The bundle that a run exports."""

    of: str | None = None  # the training stage whose weights are exported; None: the last one
    # Sampling if a request does not set it; None: as in the bundle that the weights originate from, or greedy.
    sampling: SamplingConfig | None = None


def _one_folder(name: str) -> str:
    if "/" in name or "\\" in name or "\0" in name or name.startswith("."):
        raise ValueError("expected the bare name of a folder; set where it is with root=FOLDER")
    return name


class RunSettings(Section):
    """One run: its training stages, their data, and the use of their weights."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_one_folder)]
    # Artifacts, registry and logs of the run go to `<root>/<name>`: a path, or an address such as s3://BUCKET/FOLDER.
    root: Annotated[str, BeforeValidator(str), AfterValidator(path_or_url)] = "runs"
    seed: int = Field(default=0, ge=0, lt=2**63)
    # Steps of each training stage to trace, as FIRST-LAST; the traces are in the stages' folders.
    profile: Annotated[str, Field(pattern=r"^[1-9]\d*(-[1-9]\d*)?$")] | None = None
    # One corpus, or several by name, in order: `data` in YAML.
    given_data: Annotated[DataConfig | dict[str, DataConfig], one_or_named(DataConfig)] | None = Field(
        default=None, validation_alias="data"
    )
    rows: RowsConfig = RowsConfig()
    tokenizer: TokenizerConfig
    shards: ShardsConfig = ShardsConfig()
    # One model, or several by name: `model` in YAML.
    given_model: Annotated[ModelConfig | dict[str, ModelConfig], one_or_named(ModelConfig)] = Field(
        validation_alias="model"
    )
    mesh: MeshConfig = MeshConfig()
    train: dict[str, SerializeAsAny[TrainConfig]] = Field(min_length=1)  # by the user's names, in order
    evaluate: EvaluateConfig | None = None
    export: ExportConfig = ExportConfig()
    gate: GateConfig = GateConfig()
    price: PriceConfig = PriceConfig()
    serve: ServeConfig = ServeConfig()
    requests: RequestLogConfig = RequestLogConfig()

    def remaining(self, stage: str) -> TrainConfig:
        """A training stage's settings, with the steps that it takes itself: none of those that it goes on from."""
        train = self.train[stage]
        return train.model_copy(update={"steps": train.steps - (self.starts[stage].step or 0)})

    @property
    def folder(self) -> Path:
        """The local folder of the run's artifacts, registry and logs; for an address, in the user's cache."""
        return (local_folder(self.root, "runs") if is_url(self.root) else Path(self.root)) / self.name

    @property
    def store_url(self) -> str | None:
        """The run's address in object storage; None for a run that is only in its folder."""
        return f"{self.root}/{self.name}" if is_url(self.root) else None

    @property
    def profile_steps(self) -> tuple[int, int]:
        """The first and the last step to trace."""
        assert self.profile is not None
        first, _, last = self.profile.partition("-")
        return int(first), int(last or first)

    @property
    def registry_path(self) -> Path:
        """The database of versions and aliases."""
        return self.folder / "registry.db"

    @property
    def request_log_path(self) -> Path:
        """The database of served requests."""
        return self.requests.log or self.folder / "requests.db"

    @cached_property
    def corpora(self) -> dict[str, DataConfig]:
        """The corpora by name, in order; a run's only one may have none, which is "". Empty without a data section."""
        if self.given_data is None:
            return {}
        return {"": self.given_data} if isinstance(self.given_data, DataConfig) else self.given_data

    @property
    def documents_stages(self) -> tuple[str, ...]:
        """The stages that select the corpora's documents."""
        return tuple(of_corpus(DOCUMENTS, name) for name in self.corpora)

    @cached_property
    def source_names(self) -> tuple[str, ...]:
        """The sources as token shards name them: of a named corpus `CORPUS/SOURCE`."""
        return tuple(name for corpus in self.corpora for name in self._sources_of(corpus))

    @cached_property
    def sorted_by_topic(self) -> tuple[str, ...]:
        """The corpora and sources whose documents token shards have by topic: `SOURCE/topic-00` and so on."""
        own = [corpus for corpus, data in self.corpora.items() if data.topics is not None]
        return (*filter(None, own), *(name for corpus in own for name in self._sources_of(corpus)))

    def _sources_of(self, corpus: str) -> Iterator[str]:
        names = (source.name for source in self.corpora[corpus].sources)
        return (f"{corpus}/{name}" if corpus else name for name in names)

    @cached_property
    def models(self) -> dict[str, ModelConfig]:
        """The models by name; a run's only model is called `model`."""
        return {"model": self.given_model} if isinstance(self.given_model, ModelConfig) else self.given_model

    @property
    def model(self) -> ModelConfig:
        """The first model, which training stages use unless they name one."""
        return next(iter(self.models.values()))

    @cached_property
    def starts(self) -> dict[str, Start]:
        """The initial weights of each training stage."""
        return starts_of(self.train, {name: self.model_name(name) for name in self.train})

    @cached_property
    def training_stages(self) -> tuple[str, ...]:
        """The training stages, each after those whose weights it needs."""
        return in_order(self.train, self.starts)

    @property
    def exported(self) -> str:
        """The training stage to export."""
        return self.export.of or list(self.train)[-1]

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The training stages that a run evaluates, in the order of the graph."""
        if self.evaluate is None:
            return ()
        chosen = self.train if self.evaluate.after is None else {*self.evaluate.after, self.exported}
        return tuple(name for name in self.training_stages if name in chosen)

    @property
    def evaluation_mesh(self) -> MeshConfig:
        """The mesh that evaluations run on."""
        return self.mesh if self.evaluate is None or self.evaluate.mesh is None else self.evaluate.mesh

    @property
    def decontamination(self) -> DecontaminationConfig:
        """The settings that keep evaluation rows out of the user's rows: the first corpus's."""
        first = next(iter(self.corpora.values()), None)
        return DecontaminationConfig() if first is None else first.decontamination

    @property
    def tasks(self) -> tuple[TaskConfig, ...]:
        """The evaluation tasks; empty without an evaluate section."""
        return () if self.evaluate is None else self.evaluate.tasks

    @property
    def win_rates(self) -> WinRatesConfig | None:
        """Which stages' answers are compared, if any are."""
        return None if self.evaluate is None else self.evaluate.win_rates

    def measured_tasks(self, stage: str) -> tuple[TaskConfig, ...]:
        """The tasks that a training stage measures while it trains, as it names them."""
        measured = self.train[stage].tasks
        by_name = {task.name: task for task in self.tasks}
        return () if measured is None else tuple(by_name[name] for name in measured.names)

    @property
    def uses_rows(self) -> bool:
        """Whether a training stage or a task reads rows or evaluation rows of the run."""
        return any(map(self.reads, KINDS)) or "rows" in map(rows_stage, self.tasks)

    def require_stage(self, name: str, where: str = "") -> None:
        """Raises `ConfigError`, with the nearest name, unless this is a training stage of the run."""
        if name not in self.train:
            raise ConfigError(f"{where}no training stage {name!r}{nearest(name, self.train)}")

    def model_name(self, stage: str) -> str:
        """The name of a training stage's model: the first of the run's if it names none."""
        return self.train[stage].model or next(iter(self.models))

    def model_of(self, stage: str) -> ModelConfig:
        """A training stage's model."""
        return self.models[self.model_name(stage)]

    def trained_model(self, stage: str) -> ModelConfig:
        """A training stage's model with what the stage adds to it: a drafter, or an adapter."""
        return self.train[stage].trained(self.model_of(stage))

    def models_needed(self, stage: str) -> dict[str, Start]:
        """What a training stage needs the weights of, by use: its start, and what its objective names."""
        named = named_models(self.train[stage], self.train)
        return {"bundle": self.starts[stage], **{f"bundle:{field}": start for field, start in named.items()}}

    def other_models(self, stage: str) -> dict[str, ModelConfig]:
        """The models that a training stage runs as they are, by setting. Raises `ConfigError` for a bundle that cannot
        be read."""
        train = self.train[stage]
        starts = named_models(train, self.train)
        return {name: self._model_at(f"train.{stage}.{name}", starts[name]) for name in train.others}

    def held_models(self, stage: str) -> dict[str, ModelConfig]:
        """Those of them that the stage's steps run beside its own."""
        held = self.train[stage].held
        return {name: model for name, model in self.other_models(stage).items() if name in held} if held else {}

    def held_flops(self, stage: str) -> float:
        """Matmul FLOPs per token of these models: a forward pass."""
        length = self.train[stage].seq_len
        return sum(forward_flops_per_token(model, length) for model in self.held_models(stage).values())

    def _model_at(self, at: str, start: Start) -> ModelConfig:
        if start.stage is not None:
            return self.model_of(start.stage).trunk
        assert start.bundle is not None
        return bundle_model(at, start.bundle)

    def origin_of(self, stage: str) -> Path | None:
        """The bundle that a training stage's weights originate from; None: fresh weights."""
        return self.starts[lineage(stage, self.starts)[-1]].bundle

    def reads(self, kind: str) -> tuple[str, ...]:
        """The training stages that read rows of a kind, replayed rows included, in the order of the graph."""
        return tuple(name for name in self.training_stages if kind in self.rows_of(name))

    def rows_of(self, stage: str) -> tuple[str, ...]:
        """The kinds of rows that a training stage reads: its objective's, then replayed ones."""
        train = self.train[stage]
        is_replaying = isinstance(train, SftConfig) and train.replay_share > 0
        return (objective_kind(train.objective).rows, *(["tokens"] if is_replaying else []))

    @property
    def has_rows(self) -> bool:
        """Whether rows can be made of anything."""
        return any(self.rows.of(kind) or self.rows.maker(kind) for kind in KINDS)

    def missing_rows(self, stage: str) -> str | None:
        """Why a training stage cannot have its rows, with the fix. The stages before it can be made all the same."""
        for kind in KINDS:
            if kind in self.rows_of(stage) and not self.rows.of(kind) and not self.rows.maker(kind):
                made = ""
                if kind in DOCSTRING_KINDS:
                    made = ", or make them from the documents' docstrings with rows.docstrings=true"
                elif kind == "prompts":
                    made = ", or name tasks that make them in rows.reasoning_gym"
                return f"train.{stage} reads {kind} rows and there are none: list files in rows.{kind}{made}"
        return None
