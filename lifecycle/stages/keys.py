"""Keys: the part of the config that decides a stage's content.

How a stage is computed is not part of its key. Mesh, processes, micro-batches, rematerialisation and loss chunks change
the order of float sums, not what is learned; measuring, logging and saving change nothing. So a job that is resumed on
another mesh, or with less memory, continues from its own checkpoints; the manifest records these settings
(`core/artifact.py:Manifest.how`). Nothing here imports JAX.
"""

from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError
from lifecycle.core.fetched import local_file
from lifecycle.core.file_hashes import hash_files
from lifecycle.core.store import is_url
from lifecycle.inference.defaults import generation_of_run, sampling_of
from lifecycle.model.config import ModelConfig
from lifecycle.stages.config import RunConfig
from lifecycle.stages.origins import lineage
from lifecycle.text.tokenizer import FILES, tokenizer_at


def tagging(config: RunConfig) -> dict[str, Any]:
    """The key of the tagged documents: the sources' files, and how they are read and measured."""
    from lifecycle.data.sources import source_fingerprint  # reads the sources' files: imported only if a stage may run

    assert config.data is not None
    return {"data": config.data.tagging(), "sources": source_fingerprint(config.data)}


def documents(config: RunConfig) -> dict[str, Any]:
    """The key of the documents: the selection, and the evaluation rows that must not be in them."""
    assert config.data is not None
    return {"data": config.data.selection(), "eval_rows": evaluation_rows(config), "seed": config.seed}


def tokenizer(config: RunConfig) -> dict[str, Any]:
    """The key of the tokenizer: its settings and the seed; of one at an address, what is there."""
    place = config.tokenizer.path
    contents = {} if place is None or not is_url(place) else {"contents": _hash_of(tokenizer_at(place))}
    return {**config.tokenizer.plain(), "seed": config.seed, **contents}


def _hash_of(tokenizer: Path) -> str:
    if tokenizer.is_file():
        return hash_files(tokenizer.parent, [tokenizer.name])
    return hash_files(tokenizer, [name for name in FILES if (tokenizer / name).is_file()])


def nothing(config: RunConfig) -> dict[str, Any]:
    """The empty key of a stage that depends only on its inputs."""
    return {}


def rows(config: RunConfig) -> dict[str, Any]:
    """The key of the chat rows and pairs: the user's files, and the evaluation rows that must not be in them."""
    files = {place: local_file(place) for place in (*config.rows.chat, *config.rows.pairs)}
    for place, path in files.items():
        if not path.is_file():
            raise ConfigError(f"{place}: no such file; correct rows.chat or rows.pairs")
    contents = {place: hash_files(path.parent, [path.name]) for place, path in files.items()}
    against: dict[str, Any] = {}
    if files:  # the user's rows are compared with the evaluation rows
        against = {"eval_rows": evaluation_rows(config), **config.decontamination.plain()}
    return {**config.rows.plain(), "contents": contents, "against": against, "seed": config.seed}


def training(config: RunConfig, name: str) -> dict[str, Any]:
    """The key of a training stage's weights: its data, its settings, and the order of rows."""
    train = config.train[name]
    settings = {key: value for key, value in train.plain().items() if key not in train.HOW}
    bundle, step = config.starts[name].bundle, config.starts[name].step
    if bundle is not None:
        if not bundle.is_dir():
            raise ConfigError(
                f"train.{name}.from={bundle}: no such folder; give a bundle, for example one made by `lifecycle import`"
            )
        sampling_of(bundle)  # the export inherits it: an invalid file is rejected before training
    del settings["start"], settings["model"]  # names: the weights are an input, the model is in full below
    model = _content(config.model_of(name))
    branch = {} if step is None else {"from_step": step}
    return {"train": settings, "model": model, "seed": config.seed, "order": row_order(config, name), **branch}


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
    """The key of the scores of a training stage's weights: the tasks, their rows, and the context that they must fit,
    which the weights do not know."""
    context = config.model_of(trained).max_seq_len
    tasks = [task.plain() for task in config.tasks]
    return {"tasks": tasks, "rows": evaluation_rows(config), "max_seq_len": context}


def export(config: RunConfig) -> dict[str, Any]:
    """The key of the bundle: the model and its generation defaults."""
    generation = generation_of_run(config.export.sampling, config.origin_of(config.exported))
    return {"model": _content(config.model_of(config.exported)), "generation": generation}


def _content(model: ModelConfig) -> dict[str, Any]:
    """The settings of a model that decide its weights or its bundle."""
    return {key: value for key, value in model.plain().items() if key not in model.HOW_COMPUTED}


def evaluation_rows(config: RunConfig) -> dict[str, str]:
    """The hash of the user's rows, by task."""
    from lifecycle.evals.rows import local_rows

    return {} if config.evaluate is None else local_rows(config.evaluate)


def evaluation_files(config: RunConfig) -> list[Path]:
    """The files of the user's evaluation rows."""
    from lifecycle.evals.rows import local_files

    files = {} if config.evaluate is None else local_files(config.evaluate)
    return [file for of_task in files.values() for file in of_task]
