"""A training stage's initial and final weights."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lifecycle.core.artifact import Artifact, content_hash
from lifecycle.core.config import ConfigError
from lifecycle.model.config import ModelConfig, WeightFormat
from lifecycle.model.params import Params, abstract_in_use, abstract_params, init_score, logical_axes, params_in_use
from lifecycle.model.stacks import DRAFTER, MODULES, SCORE
from lifecycle.model.weight_formats import as_served
from lifecycle.parallel.mesh import tree_shardings
from lifecycle.stages.adapters import merged_params
from lifecycle.stages.config import RunConfig
from lifecycle.stages.origins import Start, named_models
from lifecycle.stages.stage import Inputs
from lifecycle.text.interface import Tokenizer
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.adapter import PREVIOUS
from lifecycle.training.checkpoints.weights import load_params
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.job import CHECKPOINTS, Continued, Origin
from lifecycle.weights.families.family import differences
from lifecycle.weights.published import held_config, load_config, load_weights, open_weights


def start_weights(config: RunConfig, name: str, inputs: Inputs, tokenizer: Tokenizer, mesh: Mesh) -> tuple[Origin, str]:
    """A training stage's initial weights, sharded over `mesh`, and their hash; if fresh, a random key and "". For a
    stage that continues another's run, that run's checkpoint and the hash of its final weights."""
    start, model = config.starts[name], config.model_of(name)
    if start.bundle is not None:
        scored = model.model_copy(update={"has_score": config.trained_model(name).has_score})
        return imported_params(start.bundle, scored, tokenizer, mesh), content_hash(start.bundle)
    if start.stage is not None:
        if start.step is not None:
            return Continued(inputs[start.stage].path / CHECKPOINTS, start.step), inputs[start.stage].content_hash
        before, adapter = config.trained_model(start.stage), config.train[name].adapter
        params = trained_params(inputs[start.stage], before, mesh)
        if adapter is None or adapter.start != PREVIOUS:
            params = merged_params(before, params, mesh)
        now = config.trained_model(name)
        left = {DRAFTER} if before.drafter != now.drafter else set[str]()
        left |= set() if now.has_score else {SCORE}
        return without(params, left), inputs[start.stage].content_hash
    return jax.random.key(config.seed), ""


def named_model(
    config: RunConfig, name: str, setting: str, inputs: Inputs, tokenizer: Tokenizer, mesh: Mesh
) -> tuple[ModelConfig, Params]:
    """The model that a setting of a training stage names, sharded over `mesh`: one that the stage runs as it is in the
    dtype that it computes in, without a copy in float32, else as it was trained, with its score if it is a reward
    model."""
    train, start = config.train[name], named_models(config.train[name], config.train)[setting]
    if setting in train.others:
        model, num_rows = config.other_models(name)[setting], config.model_of(name).vocab_size
        if start.bundle is not None:
            shared = train.shared_ids if isinstance(train, DistillationConfig) else None
            require_same_ids(f"train.{name}.{setting}={start.bundle}", load_tokenizer(start.bundle), tokenizer, shared)
        params = with_rows(model, _held_params(config, start, model, inputs, mesh), num_rows, mesh)
        return model.model_copy(update={"vocab_size": num_rows}), params
    assert start.stage is not None, "the settings were checked"
    return _trained_model(config, start.stage, inputs, mesh)


def weights_hash(start: Start, inputs: Inputs) -> str:
    """The hash of a finished stage's weights, or of a bundle."""
    if start.stage is not None:
        return inputs[start.stage].content_hash
    assert start.bundle is not None
    return content_hash(start.bundle)


def with_rows(model: ModelConfig, params: Params, num_rows: int, mesh: Mesh) -> Params:
    """A model's weights with so many rows for ids: the first of its own, or those and rows of zeros."""
    if num_rows == model.vocab_size:
        return params
    places = tree_shardings(mesh, logical_axes(model.model_copy(update={"vocab_size": num_rows})))

    def resized(table: jax.Array) -> jax.Array:
        return jnp.pad(table[:num_rows], ((0, max(0, num_rows - len(table))), (0, 0)))

    tables = ("embed",) if model.tie_embeddings else ("embed", "head")
    return params | {name: jax.jit(resized, out_shardings=places[name])(params[name]) for name in tables}


def require_same_ids(at: str, theirs: Tokenizer, tokenizer: Tokenizer, shared_ids: int | None) -> None:
    """Raises `ConfigError`, with the mend, unless the ids below `shared_ids` (None: all) are the same tokens in both
    tokenizers."""
    difference = theirs.difference(tokenizer)
    if difference is None or (shared_ids is not None and theirs.num_same(tokenizer) >= shared_ids):
        return
    same = theirs.num_same(tokenizer)
    mend = f"set shared_ids={same} to compare the first ids, which are the same, alone; or " if same else ""
    raise ConfigError(
        f"{at}: its tokenizer is not the run's ({difference}); {mend}use the teacher's tokenizer for this run "
        "(tokenizer.path), or another teacher"
    )


def _held_params(config: RunConfig, start: Start, model: ModelConfig, inputs: Inputs, mesh: Mesh) -> Params:
    if start.stage is not None:
        trained, weights = config.trained_model(start.stage), config.train[start.stage].weights
        return without(trained_params_in_use(inputs[start.stage], trained, mesh, weights), (MODULES,))
    assert start.bundle is not None
    return load_weights(model, start.bundle, tree_shardings(mesh, logical_axes(model)), like=abstract_in_use(model))


def _trained_model(config: RunConfig, stage: str, inputs: Inputs, mesh: Mesh) -> tuple[ModelConfig, Params]:
    model = config.trained_model(stage)
    params = trained_params(inputs[stage], model, mesh)
    score = {SCORE: params[SCORE]} if model.has_score else {}
    plain = merged_params(model, without(params), mesh)
    return model.target.model_copy(update={"has_score": model.has_score}), plain | score


def trained_params(artifact: Artifact, model: ModelConfig, mesh: Mesh | None = None) -> Params:
    """The final weights of a training stage's artifact, sharded over `mesh`, or all on this process's first device.
    `model` is the stage's `trained_model`.

    Always those of the last step, never of an earlier checkpoint if the last one is damaged.
    """
    return _final_params(artifact, model, mesh, None)


def trained_params_in_use(
    artifact: Artifact, model: ModelConfig, mesh: Mesh | None = None, weights: WeightFormat | None = None
) -> Params:
    """`trained_params` in the dtypes that the model computes with (`params_in_use`), converted while they are read; of
    `model.target`, without a drafter and with what an adapter has learned. Those of a stage that trained them for a
    format have the values that it gives them, and are converted then: float32 is what is rounded."""
    if weights is None and model.adapter is None:
        return without(_final_params(artifact, model, mesh, abstract_in_use(model)))
    plain = merged_params(model, without(_final_params(artifact, model, mesh, None)), mesh)
    return params_in_use(model.target, plain if weights is None else as_served(model.target, plain, weights))


def without(params: Params, left: Collection[str] = (DRAFTER, SCORE)) -> Params:
    """The weights without parts that only the stages have that train them."""
    return {name: array for name, array in params.items() if name not in left}


def with_score(model: ModelConfig, params: Params, seed: int, mesh: Mesh) -> Params:
    """The weights with a new score, sharded over `mesh`; unchanged if they have one already."""
    if SCORE in params:
        return params
    shardings = tree_shardings(mesh, logical_axes(model))[SCORE]
    return params | {SCORE: jax.jit(partial(init_score, model), out_shardings=shardings)(jax.random.key(seed))}


def _final_params(artifact: Artifact, model: ModelConfig, mesh: Mesh | None, dtypes_of: Params | None) -> Params:
    shardings = tree_shardings(mesh, logical_axes(model)) if mesh is not None else None
    folder, step = artifact.path / CHECKPOINTS, artifact.stats["steps"]
    return load_params(folder, abstract_params(model), step, shardings, dtypes_of=dtypes_of)


def imported_params(bundle: Path, model: ModelConfig, tokenizer: Tokenizer, mesh: Mesh) -> Params:
    """A bundle's weights, sharded over `mesh`, with its score if it and the model have one; raises `ConfigError` if its
    model or vocabulary is not this run's."""
    held = load_config(bundle, may_score=model.has_score)
    model = model.model_copy(update={"has_score": held.has_score})
    held = held_config(held, open_weights(held, bundle))
    if not model.num_mtp_modules:  # a run may do without a bundle's prediction modules
        held = held.model_copy(update={"num_mtp_modules": 0})
    if wrong := differences(held.model_copy(update={"max_seq_len": model.max_seq_len}), model):
        raise ConfigError(f"{bundle} is another model: {', '.join(wrong)}; set these in this run's model section")
    if load_tokenizer(bundle).fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"{bundle} was trained with another tokenizer; use the bundle's own: tokenizer.kind=hf (or "
            f"sentencepiece) and tokenizer.path={bundle}"
        )
    return load_weights(model, bundle, tree_shardings(mesh, logical_axes(model)))
