"""Stage `export`: weights, config, tokenizer and chat template in the layout that other tools open.

The weights go from the checkpoint to the bundle array by array: memory holds one array and the published tensor that it
fills. They keep the checkpoint's float32, so that the exported weights are the evaluated ones; `lifecycle import
safetensors BUNDLE OUT --dtype bfloat16` makes a smaller bundle from it, which needs its own evaluation. Weights that
were trained for a format are written with the values that it gives them: any tool then computes what was trained, and
rounding them again changes nothing. What an adapter has learned is added to them, and in a folder beside them too. A
stage that learns a score exports a model that scores texts, transformers' `*ForSequenceClassification` with one label:
of a process reward model the score of the last step. A value function stays here.
"""

import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from lifecycle.core.artifact import MANIFEST, Artifact
from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.inference.defaults import ENDS, GENERATION_FILE, end_ids, generation_of_run
from lifecycle.model.config import ModelConfig, WeightFormat
from lifecycle.model.counts import num_params
from lifecycle.model.params import abstract_params
from lifecycle.model.stacks import DRAFTER
from lifecycle.model.weight_formats import leaf_as_served
from lifecycle.stages.adapters import FOLDER as ADAPTER_FOLDER
from lifecycle.stages.adapters import Read, base_of, merged_reader, write_adapter
from lifecycle.stages.config import RunConfig
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.checkpoints.weights import read_params
from lifecycle.training.job import CHECKPOINTS
from lifecycle.weights.arrays import declarations
from lifecycle.weights.drafters import FOLDER, write_drafter
from lifecycle.weights.modules import FOLDER as MODULES_FOLDER
from lifecycle.weights.modules import write_modules
from lifecycle.weights.published import FLOAT32, family_of, write_config, write_weights


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Writes the bundle of the training stage that the run exports."""
    folder = inputs["tokenizer"].path
    for file in sorted(folder.iterdir()):
        if file.name != MANIFEST:
            shutil.copyfile(file, out / file.name)
    tokenizer = load_tokenizer(folder)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_id") for name in ("bos", "eos", "pad")}
    train = config.train[config.exported]
    model, weights = config.trained_model(config.exported), train.weights
    bundled = bundled_part(model, train.is_scorer)
    export_weights(model, inputs[config.exported], out, weights, train.is_scorer)
    if bundled.num_mtp_modules != model.num_mtp_modules:
        export_modules(model, inputs[config.exported], out / MODULES_FOLDER, weights)
        progress.note(f"prediction modules in {MODULES_FOLDER}: family {model.family} has no place for them")
    if model.drafter is not None:
        export_drafter(model, inputs[config.exported], out / FOLDER)
    if model.adapter is not None:
        write_adapter(model, inputs[config.exported], out / ADAPTER_FOLDER, base_of(config, config.exported))
    write_config(bundled, out, **ids)
    stops = ChatTemplate.load(folder, tokenizer).stop_ids
    generation = generation_of_run(config.export.sampling, config.origin_of(config.exported))
    ends = list(dict.fromkeys([*stops, *end_ids(generation)]))
    write_text(out / GENERATION_FILE, json.dumps({**generation, **ids, ENDS: ends}, indent=2) + "\n")
    progress.note("bundle written")
    return Outcome({"parameters": num_params(bundled), "of": config.exported})


def export_modules(model: ModelConfig, trained: Artifact, out: Path, weights: WeightFormat | None = None) -> None:
    """Writes the prediction modules of a training stage's artifact into the folder `out`; `weights` as in
    `export_weights`."""
    read = _read(model, trained, weights)
    write_modules(model, lambda array: read(array, None), out)


def export_drafter(model: ModelConfig, trained: Artifact, out: Path) -> None:
    """Writes the drafter of a training stage's artifact into the folder `out`."""
    read = read_params(trained.path / CHECKPOINTS, abstract_params(model), trained.stats["steps"])
    write_drafter(model, lambda array: read(f"{DRAFTER}.{array}", None), out)


def export_weights(
    model: ModelConfig, trained: Artifact, out: Path, weights: WeightFormat | None = None, is_scorer: bool = False
) -> None:
    """Writes the final weights of a training stage's artifact into `out`, in the layout of the model's family; without
    prediction modules, if that has no place for them. `weights`: the format that the stage trained them for, whose
    values are written; `is_scorer`: with its score, and without a head."""
    read = _read(model, trained, weights)
    write_weights(bundled_part(model, is_scorer), read, out, lambda name, arrays: FLOAT32)


def bundled_part(model: ModelConfig, is_scorer: bool = False) -> ModelConfig:
    """The part of a stage's model that its bundle's weights have."""
    return family_of(model).exported(model.model_copy(update={"has_score": is_scorer}))


def _read(model: ModelConfig, trained: Artifact, weights: WeightFormat | None) -> Read:
    stored = read_params(trained.path / CHECKPOINTS, abstract_params(model), trained.stats["steps"])
    read = merged_reader(model, stored)
    if weights is None:
        return read
    known = declarations(model)

    def rounded(name: str, expert: int | None) -> np.ndarray:
        array = jnp.asarray(read(name, expert), jnp.float32)
        return np.asarray(leaf_as_served(known[name], array, weights, jnp.float32))

    return rounded
