"""What decides what each stage makes: the part of the config that its artifact's key holds.

How a stage is computed does not decide it. Mesh, processes, micro-batches, rematerialisation and chunks of the loss
change the order of float sums, not what is learned; logging and saving change nothing. They are not in a key, so that
a job that comes back on another mesh, or with less memory, goes on from its own checkpoints; the manifest records them
(`core/artifact.py:Manifest.how`). No import here needs JAX.
"""

from pathlib import Path
from typing import Any

from lifecycle.core.artifact import hash_files
from lifecycle.core.config import ConfigError
from lifecycle.inference.defaults import generation_of_run, sampling_of
from lifecycle.stages.config import RunConfig
from lifecycle.stages.origins import lineage


def tagging(config: RunConfig) -> dict[str, Any]:
    """Of the tagged documents: the sources' files, and how they are read and measured."""
    from lifecycle.data.sources import source_fingerprint  # reads the sources' files: only where a stage may run

    assert config.data is not None
    return {"data": config.data.tagging(), "sources": source_fingerprint(config.data)}


def documents(config: RunConfig) -> dict[str, Any]:
    """Of the documents: what is selected, and the evaluation rows that must not be in them."""
    assert config.data is not None
    return {"data": config.data.selection(), "eval_rows": evaluation_rows(config), "seed": config.seed}


def tokenizer(config: RunConfig) -> dict[str, Any]:
    """Of the tokenizer."""
    return {**config.tokenizer.plain(), "seed": config.seed}


def nothing(config: RunConfig) -> dict[str, Any]:
    """Of a stage that its inputs alone decide."""
    return {}


def rows(config: RunConfig) -> dict[str, Any]:
    """Of the chat rows and pairs: the user's files, and the evaluation rows that must not be in them."""
    files = [*config.rows.chat, *config.rows.pairs]
    for path in files:
        if not path.is_file():
            raise ConfigError(f"{path}: no such file; correct rows.chat or rows.pairs")
    contents = {str(path): hash_files(path.parent, [path.name]) for path in files}
    against: dict[str, Any] = {}
    if files:  # own rows are compared with the evaluation's
        against = {"eval_rows": evaluation_rows(config), **config.decontamination.plain()}
    return {**config.rows.plain(), "contents": contents, "against": against, "seed": config.seed}


def training(config: RunConfig, name: str) -> dict[str, Any]:
    """Of a training stage's weights: what it learns from, with which settings, and in which order."""
    train = config.train[name]
    how = train.HOW_COMPUTED | train.HOW_RECORDED
    settings = {key: value for key, value in train.plain().items() if key not in how}
    bundle = config.starts[name].bundle
    if bundle is not None:
        if not bundle.is_dir():
            raise ConfigError(
                f"train.{name}.from={bundle}: no such folder; give a bundle, for example one made by `lifecycle import`"
            )
        sampling_of(bundle)  # the export inherits it: one that is damaged is rejected before the training
    del settings["start"], settings["model"]  # names: the weights are an input, the model is in full below
    model = config.model_of(name).plain()
    return {"train": settings, "model": model, "seed": config.seed, "order": row_order(config, name)}


def row_order(config: RunConfig, name: str) -> dict[str, int]:
    """By kind of rows that a stage reads, how many stages before it in its lineage have read such rows.

    Each goes through them in an order of its own: one that goes on with the same rows does not begin with those that
    were just learned.
    """
    before = lineage(name, config.starts)[1:]
    return {kind: sum(kind in config.rows_of(stage) for stage in before) for kind in config.rows_of(name)}


def evaluation(config: RunConfig) -> dict[str, Any]:
    """Of the scores: the tasks and their rows."""
    return {"tasks": [task.plain() for task in config.tasks], "rows": evaluation_rows(config)}


def export(config: RunConfig) -> dict[str, Any]:
    """Of the bundle."""
    generation = generation_of_run(config.export.sampling, config.origin_of(config.exported))
    return {"model": config.model_of(config.exported).plain(), "generation": generation}


def evaluation_rows(config: RunConfig) -> dict[str, str]:
    """By task, the hash of the user's rows."""
    from lifecycle.evals.rows import local_rows

    return {} if config.evaluate is None else local_rows(config.evaluate)


def evaluation_files(config: RunConfig) -> list[Path]:
    """The files of the user's evaluation rows."""
    from lifecycle.evals.rows import local_files

    files = {} if config.evaluate is None else local_files(config.evaluate)
    return [file for of_task in files.values() for file in of_task]
