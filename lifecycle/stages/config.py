"""The run config: every room's section in one tree, read and checked.

What must hold: an impossible run is rejected when its file is read, with the fix; rows that a stage lacks, when that
stage is asked for. Cheap to import: nothing here needs a numerical library.
"""

from typing import Any, Self

from pydantic import ModelWrapValidatorHandler, PrivateAttr, field_validator, model_validator

from lifecycle.core.config import nearest
from lifecycle.model.dial import Filled
from lifecycle.stages.branches import with_inherited
from lifecycle.stages.checks import (
    check_adapter,
    check_held,
    check_measured,
    check_mixture,
    check_reading,
    check_reward,
    check_sizes,
    check_target_format,
    check_task,
    check_teacher,
    check_win_rates,
)
from lifecycle.stages.names import STAGE_NAME, is_reserved
from lifecycle.stages.origins import FRESH, check_stage_names, named_models
from lifecycle.stages.run_settings import RunSettings
from lifecycle.text.row_columns import KINDS
from lifecycle.training.config import TrainConfig
from lifecycle.training.dial import fill
from lifecycle.weights.families.lookup import family_of


class RunConfig(RunSettings):
    """One run that can be made: what depths decide and other stages' runs hand on is filled in."""

    _filled: tuple[Filled, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _fill(cls, tree: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        tree, filled = fill(tree)
        config = read(with_inherited(tree))
        config._filled = filled
        return config

    @property
    def filled(self) -> tuple[Filled, ...]:
        """The settings that the models' depths have decided, with their rules."""
        return self._filled

    @field_validator("profile", mode="before")
    @classmethod
    def _one_step(cls, profile: object) -> object:
        return str(profile) if isinstance(profile, int) else profile  # YAML reads `profile: 10` as a number

    @field_validator("profile")
    @classmethod
    def _in_order(cls, profile: str | None) -> str | None:
        first, _, last = (profile or "1").partition("-")
        if int(last or first) < int(first):
            raise ValueError(f"profile={profile}: expected the first step, then the last one: {last}-{first}")
        return profile

    @field_validator("given_data")
    @classmethod
    def _corpora_can_be_compared(cls, data: object) -> object:
        corpora = data if isinstance(data, dict) else {}
        for name in corpora:
            if not STAGE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a corpus: use lower-case letters, digits, _ and -")
        keys = {name: (own.dedup.bands, own.dedup.rows) for name, own in corpora.items()}
        if len({*keys.values()}) > 1:
            told = ", ".join(f"{name}: bands={bands}, rows={rows}" for name, (bands, rows) in keys.items())
            raise ValueError(f"dedup.bands and dedup.rows differ between corpora, so no duplicates would meet ({told})")
        return data

    @field_validator("train")
    @classmethod
    def _names_are_free(cls, train: dict[str, TrainConfig]) -> dict[str, TrainConfig]:
        for name in train:
            if not STAGE_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a stage: use lower-case letters, digits, _ and -")
            if is_reserved(name) or name == FRESH:
                raise ValueError(f"{name!r} is a reserved name; rename the training stage")
        return train

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_names()
        self._check_rows()
        self._check_meshes()
        for model in self.models.values():
            family = family_of(model)
            family.config_to(family.exported(model))  # what no export can express is rejected now, not after training
        for name in self.train:
            check_sizes(f"train.{name}", self.train[name], self.trained_model(name), self.mesh)
            for field, start in named_models(self.train[name], self.train).items():
                if start.stage is not None and field in self.train[name].others:
                    other = self.model_of(start.stage).trunk
                    at = f"train.{name}.{field}={start.stage}"
                    check_held(at, self.train[name], self.model_of(name), other, self.mesh)
        return self

    def _check_names(self) -> None:
        """Checks that every named stage and model exists, and that the stages form no cycle."""
        for name, train in self.train.items():
            if train.model is not None and train.model not in self.models:
                raise ValueError(f"train.{name}.model={train.model}: no such model{nearest(train.model, self.models)}")
        if given := [name for name, model in self.models.items() if model.drafter is not None]:
            raise ValueError(f"model.{given[0]}.drafter: a training stage with objective=eagle makes it; leave it out")
        if unused := self.models.keys() - {self.model_name(name) for name in self.train}:
            raise ValueError(
                f"model.{min(unused)}: no training stage uses this model; set train.STAGE.model, or remove it"
            )
        if given := [name for name, model in self.models.items() if model.adapter is not None]:
            raise ValueError(f"model.{given[0]}.adapter: set train.STAGE.adapter instead, of the stage that trains it")
        if given := [name for name, model in self.models.items() if model.reference is not None]:
            raise ValueError(f"model.{given[0]}.reference: set train.STAGE.reference, of the stage that has one")
        check_stage_names(self.train)
        for name in self.training_stages:
            check_reward(name, self.train)
            check_teacher(name, self.train, self.starts[name])
            check_adapter(name, self.train, self.starts[name])
            if self.train[name].needs_reference and self.starts[name].is_fresh:
                raise ValueError(
                    f"train.{name}: {self.train[name].objective} takes its initial weights as the reference, and fresh "
                    f"weights cannot be one; set train.{name}.from to a stage or to a bundle's folder"
                )
            if self.trained_model(name).drafter is not None and self.starts[name].is_fresh:
                raise ValueError(
                    f"train.{name}: a drafter is trained for finished weights; set train.{name}.from to a stage or to "
                    "a bundle's folder"
                )
            if (origin := self.starts[name].stage) is not None and self.trained_model(name).drafter is not None:
                check_target_format(name, self.train[name], origin, self.train[origin])
        if self.win_rates is not None:
            check_win_rates(self.win_rates, self.train, self.reads(self.win_rates.rows))
        named = {"export.of": [self.export.of] if self.export.of else []}
        named["evaluate.after"] = list(self.evaluate.after or ()) if self.evaluate else []
        for setting, names in named.items():
            for name in names:
                self.require_stage(name, f"{setting}: ")

    def _check_rows(self) -> None:
        """Checks that the rows that stages and tasks read can be made."""
        if not self.corpora:
            self._check_without_data()
        for task in self.tasks:
            check_task(task, self.documents_stages, self.rows.docstrings)
        for kind in KINDS:
            self._check_own_rows(kind)
        sources = (*self.source_names, *filter(None, self.corpora))
        for name, train in self.train.items():
            check_mixture(f"train.{name}", train, sources, self.sorted_by_topic)
            check_reading(f"train.{name}", train, self.rows_of(name)[0])
            check_measured(f"train.{name}", train, self.tasks)
        if self.rows.reasoning_gym and not self.reads("prompts"):
            raise ValueError("rows.reasoning_gym makes prompts, but no training stage reads prompts rows; remove it")
        if self.rows.docstrings and not self.uses_rows:
            raise ValueError("rows.docstrings: no training stage and no task uses these rows; set it to false")

    def _check_own_rows(self, kind: str) -> None:
        if self.rows.of(kind) and not self.reads(kind):
            raise ValueError(f"rows.{kind} lists files, but no training stage reads {kind} rows; remove it")

    def _check_without_data(self) -> None:
        needs = [f"train.{name} reads token rows" for name in self.reads("tokens")]
        if self.rows.docstrings:
            needs.append("rows.docstrings reads the documents")
        if self.tokenizer.is_trained:
            needs.append("the tokenizer is trained on the documents (tokenizer.path takes an existing one)")
        if needs:
            raise ValueError(f"{needs[0]}, and there is no data section; add data.sources")
        if self.shards.count is not None:
            raise ValueError("shards.count: without a data section there are no token shards; remove it")

    def _check_meshes(self) -> None:
        """Checks that each model fits the meshes of its training, evaluation and serving."""
        generates = any(task.kind == "generate" for task in self.tasks)
        for name in self.train:
            self.trained_model(name).check_mesh(self.mesh)
        for name in self.evaluated:
            self.model_of(name).check_mesh(self.evaluation_mesh)
            if generates:
                self.model_of(name).check_mesh(self.evaluation_mesh.for_inference)
        for name in () if self.win_rates is None else self.win_rates.stages:
            self.model_of(name).check_mesh(self.evaluation_mesh.for_inference)
        self.model_of(self.exported).check_mesh(self.serve.mesh)
