"""Keys: the part of the config that decides a stage's content.

How a stage is computed is not part of its key. Mesh, processes, micro-batches, rematerialisation and loss chunks change
the order of float sums, not what is learned; measuring, logging and saving change nothing. So a job that is resumed on
another mesh, or with less memory, continues from its own checkpoints; the manifest records these settings
(`core/artifact.py:Manifest.how`). Nor is what only a later stage uses, or nobody: a model's context and published
layout belong to its bundle, and of a user's files the content counts, not the folder. Nothing here imports JAX.
"""

from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError
from lifecycle.core.fetched import local_file
from lifecycle.core.file_hashes import file_hashes, hash_files
from lifecycle.core.web_address import shown
from lifecycle.data.config import DedupConfig
from lifecycle.inference.defaults import generation_of_run, sampling_of
from lifecycle.model.config import ModelConfig
from lifecycle.rl.config import RolloutConfig
from lifecycle.rl.gym import installed_version
from lifecycle.stages.config import RunConfig
from lifecycle.stages.origins import lineage, named_models
from lifecycle.text.row_columns import KINDS
from lifecycle.text.tokenizer import FILES, tokenizer_at
from lifecycle.training.adapter import ADAPTER_FILES
from lifecycle.training.config import TrainConfig
from lifecycle.training.distilling import DistillationConfig


def tagging(config: RunConfig, corpus: str) -> dict[str, Any]:
    """The key of a corpus's tagged documents: the sources' files, and how they are read and measured."""
    from lifecycle.data.reading.sources import (
        source_fingerprint,  # reads the sources' files: imported only if a stage may run
    )

    data = config.corpora[corpus]
    return {"data": data.tagging(), "sources": source_fingerprint(data)}


def documents(config: RunConfig, corpus: str) -> dict[str, Any]:
    """The key of a corpus's documents: the selection, the evaluation rows that must not be in them, and the names of
    earlier corpora, as reasons have them; their contents are inputs."""
    data = config.corpora[corpus]
    rights = data.rights
    places = (*rights.forget, *(place for own in rights.opt_outs.values() for place in own))
    lists = {"lists": [_content_of(place, "data.rights") for place in places]} if places else {}
    against = {"against": _earlier_names(data.dedup)} if data.dedup.against else {}
    rows = evaluation_rows(config)
    return {"data": data.selection(), **lists, **against, "eval_rows": rows, "seed": config.seed}


def _earlier_names(config: DedupConfig) -> list[str]:
    from lifecycle.data.selecting.earlier import earlier_corpora  # imported only if a stage may run, as above

    return [corpus.name for corpus in earlier_corpora(config)]


def tokenizer(config: RunConfig) -> dict[str, Any]:
    """The key of the tokenizer: how it is trained, or the content of an existing one."""
    settings = config.tokenizer
    if settings.is_trained:
        return {**settings.plain(), "seed": config.seed}
    content = {} if settings.path is None else {"content": _hash_of(tokenizer_at(settings.path))}
    return {"kind": settings.kind, **content} | ({"framing": "published"} if is_for_published(config) else {})


def is_for_published(config: RunConfig) -> bool:
    """Whether the run's tokenizer is that of weights which it goes on from, and keeps its own framing of texts."""
    return config.tokenizer.path is not None and any(start.bundle is not None for start in config.starts.values())


def _hash_of(tokenizer: Path) -> str:
    """The hash of a tokenizer's folder, or of its native file and what is read beside it."""
    folder = tokenizer.parent if tokenizer.is_file() else tokenizer
    named = (tokenizer.name,) if tokenizer.is_file() else ()
    return hash_files(folder, [name for name in dict.fromkeys((*named, *FILES)) if (folder / name).is_file()])


def tokens(config: RunConfig) -> dict[str, Any]:
    """The key of the token shards: how many there are, and the topics of documents, by corpus, of those that have
    some."""
    topics = {corpus: found for corpus, data in config.corpora.items() if (found := data.sharding()["topics"])}
    return config.shards.plain() | ({"topics": topics} if topics else {})


def rows(config: RunConfig) -> dict[str, Any]:
    """The key of the rows: what is in the user's files and how it is read, the evaluation rows that must not be in
    them, the tasks that make others, and what the stages that read them require."""
    settings = config.rows
    own: dict[str, Any] = {kind: _own_rows(config, kind) for kind in KINDS if settings.of(kind)}
    if own:
        own |= {"heldout_fraction": settings.heldout_fraction, "eval_rows": evaluation_rows(config)}
        own |= config.decontamination.plain()
    weights = {kind: _weights(config, kind) for kind in KINDS}
    read = {"special_tokens": settings.special_tokens, "max_dropped": settings.max_dropped, "weights": weights}
    readers = [[kind, *_read_as(config.train[name])] for kind in KINDS for name in config.reads(kind)]
    gym = [task.plain() for task in settings.reasoning_gym]
    made = {"reasoning_gym": [*gym, installed_version()]} if gym else {}
    return {"docstrings": settings.docstrings, "own": own, "seed": config.seed, "readers": readers, **read, **made}


def _read_as(train: TrainConfig) -> list[Any]:
    """How a stage reads its rows, and what it requires of them."""
    return [train.longest_row, train.truncation, train.reads_margin, *_rewarded(train).values()]


def _own_rows(config: RunConfig, kind: str) -> list[dict[str, Any]]:
    read = [(file, config.rows.columns(kind, file)) for file in config.rows.of(kind)]
    return [
        {
            "content": _content_of(file.path, f"rows.{kind}"), "ignore": sorted(columns.ignore),
            "rename": dict(columns.rename), "convert": columns.convert,
        }
        for file, columns in read
    ]  # fmt: skip


def _content_of(place: str, setting: str) -> str:
    path = local_file(place)
    if not path.is_file():
        raise ConfigError(f"{shown(place)}: no such file; correct {setting}")
    return file_hashes(path.parent, [path.name])[path.name]


def training(config: RunConfig, name: str) -> dict[str, Any]:
    """The key of a training stage's weights: its data, its settings, and the order of rows."""
    train = config.train[name]
    settings = {key: value for key, value in train.plain().items() if key not in {*train.HOW, "adapter"}}
    bundle, step = config.starts[name].bundle, config.starts[name].step
    if bundle is not None:
        if not bundle.is_dir():
            raise ConfigError(
                f"train.{name}.from={bundle}: no such folder; give a bundle, for example one made by `lifecycle import`"
            )
        sampling_of(bundle)  # the export inherits it: an invalid file is rejected before training
    others = named_models(train, config.train)
    settings |= {field: None for field, start in others.items() if start.bundle is not None}  # its content is an input
    settings |= _adapter(config, name) | _rewarded(train) | _answered(train)
    del settings["start"], settings["model"]  # names: the weights are an input, the model is in full below
    settings["optimizer"] |= {"schedule": train.optimizer.schedule.used()}
    model = _without(config.model_of(name), ModelConfig.HOW)
    known: dict[str, Any] = {} if step is None else {"from_step": step}
    if read := [kind for kind in config.rows_of(name) if kind in KINDS]:
        known["rows"] = {"special_tokens": config.rows.special_tokens, "weights": [_weights(config, k) for k in read]}
    return {"train": settings, "model": model, "seed": config.seed, "order": row_order(config, name), **known}


def _weights(config: RunConfig, kind: str) -> list[float]:
    """What the rows' artifact does not have in its files: a stage repeats rows by the weights of their files."""
    return [file.weight for file in config.rows.of(kind) if file.weight is not None]


def _adapter(config: RunConfig, name: str) -> dict[str, Any]:
    """The settings of a stage's adapter, with the content of the one that it starts from."""
    adapter = config.train[name].adapter
    if adapter is None:
        return {}
    if adapter.folder is None:
        return {"adapter": adapter.plain()}
    folder = Path(adapter.folder)
    if missing := [file for file in ADAPTER_FILES if not (folder / file).is_file()]:
        raise ConfigError(
            f"train.{name}.adapter.from={folder}: no {missing[0]} here; give the folder of an adapter as PEFT saves it"
        )
    return {"adapter": adapter.plain() | {"start": hash_files(folder, ADAPTER_FILES)}}


def _rewarded(train: TrainConfig) -> dict[str, Any]:
    """What the rewards and the episodes of a stage are, with the content of the user's code; labels are for logs."""
    if not isinstance(train, RolloutConfig):
        return {}
    rewards = {} if train.reward_functions is None else {"rewards": train.reward_functions.fingerprint()}
    return rewards | ({} if train.episodes is None else {"episodes": train.episodes.fingerprint})


def _answered(train: TrainConfig) -> dict[str, Any]:
    """What decides a student's own answers."""
    answered = train.on_policy if isinstance(train, DistillationConfig) else None
    return {} if answered is None else {"on_policy": answered.key()}


def row_order(config: RunConfig, name: str) -> dict[str, int]:
    """For each kind of rows that a stage reads, how many earlier stages in its lineage have read such rows.

    Each stage has its own order: one that continues with the same rows does not start with those just seen. One that
    continues another's run has that one's order.
    """
    start = config.starts[name]
    if start.step is not None and start.stage is not None:
        return row_order(config, start.stage)
    before = lineage(name, config.starts)[1:]
    return {kind: sum(kind in config.rows_of(stage) for stage in before) for kind in config.rows_of(name)}


def evaluation(config: RunConfig, trained: str) -> dict[str, Any]:
    """The key of the scores of a training stage's weights: the tasks, their rows, the format that the weights are for,
    and the context that they must fit, which the weights do not know."""
    from lifecycle.evals.rows import task_settings

    context = config.model_of(trained).max_seq_len
    tasks = [task_settings(task) for task in config.tasks]
    weights = config.train[trained].weights
    return {"tasks": tasks, "rows": evaluation_rows(config), "max_seq_len": context, "weights": weights}


def win_rates(config: RunConfig) -> dict[str, Any]:
    """The key of the win rates: what is asked and who judges, and of each stage that answers the context and the format
    of its weights."""
    settings = config.win_rates
    assert settings is not None
    answering = {name: [config.model_of(name).max_seq_len, config.train[name].weights] for name in settings.stages}
    return settings.key() | {"answering": answering, "special_tokens": config.rows.special_tokens}


def export(config: RunConfig) -> dict[str, Any]:
    """The key of the bundle: the model, the format that its weights are for, and its generation defaults."""
    generation = generation_of_run(config.export.sampling, config.origin_of(config.exported))
    model, weights = config.model_of(config.exported), config.train[config.exported].weights
    return {"model": _without(model, ModelConfig.HOW_COMPUTED), "weights": weights, "generation": generation}


def _without(model: ModelConfig, omitted: frozenset[str]) -> dict[str, Any]:
    omitted |= {"adapter", "reference"}  # which no run's model has: a stage's settings do
    return {key: value for key, value in model.plain().items() if key not in omitted}


def evaluation_rows(config: RunConfig) -> dict[str, str]:
    """The hash of the user's rows, by task."""
    from lifecycle.evals.rows import local_rows

    return {} if config.evaluate is None else local_rows(config.evaluate)


def evaluation_files(config: RunConfig) -> dict[str, list[Path]]:
    """The files of the user's evaluation rows, by task."""
    from lifecycle.evals.rows import local_files

    return {} if config.evaluate is None else local_files(config.evaluate)
