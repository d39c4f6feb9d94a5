"""A loaded model as the subject of an evaluation: scored on the mesh that holds its weights, decoded by the engine.

Training stages and bundles are evaluated through this one class, so the same weights get the same scores in either.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.evals.encoder import TextEncoder
from lifecycle.evals.subject import Pair
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import KEPT_IN_FLOAT32, Params, compute_dtype
from lifecycle.text.chat import ChatTemplate, read_template
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.scoring import loglikelihoods
from lifecycle.weights.published import load_config, load_weights

PLAIN_TEXT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # only the EOS ends it


@dataclass(frozen=True)
class EvaluatedModel:
    """A model whose weights are on `mesh`. Of a base model the encoder has no chat template."""

    model: Model
    mesh: Mesh
    encoder: TextEncoder

    @property
    def max_seq_len(self) -> int:
        return self.model.config.max_seq_len

    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[float]:
        """log p(continuation | context) in nats, for each pair."""
        return loglikelihoods(self.model.config, self.model.params, pairs, self.mesh)

    def generate(self, prompts: Sequence[list[int]], max_tokens: int, stop: Sequence[str]) -> list[str]:
        """Greedy continuations, without the stop string or the end of the turn."""
        greedy = SamplingParams(temperature=0, max_tokens=max_tokens, stop=tuple(stop))
        return [completion.text for completion in generate(self._on_one_device, prompts, greedy)]

    @cached_property
    def _on_one_device(self) -> Model:
        """What the engine takes: it decodes on one device, each process on its first."""
        if self.mesh.size == 1:
            return self.model
        return replace(self.model, params=gathered(self.model.config, self.model.params, self.mesh))


def chat_model(model: Model, mesh: Mesh) -> EvaluatedModel:
    """A model with turns, whose weights are on `mesh`, as the subject of an evaluation."""
    return EvaluatedModel(model, mesh, TextEncoder(model.tokenizer, model.template))


def open_bundle(bundle: Path, max_seq_len: int, mesh: Mesh) -> EvaluatedModel:
    """A bundle's model with its context cut to `max_seq_len`; one without a chat template answers plain text only.

    Raises what `load_bundle` raises for a folder that is no bundle.
    """
    has_turns = read_template(bundle) is not None
    subject = chat_model(load_bundle(bundle), mesh) if has_turns else _base_model(bundle, mesh)
    config = subject.model.config
    context = {"max_seq_len": min(max_seq_len, config.max_seq_len)}
    return replace(subject, model=replace(subject.model, config=config.model_copy(update=context)))


def _base_model(bundle: Path, mesh: Mesh) -> EvaluatedModel:
    config, tokenizer = load_config(bundle), load_tokenizer(bundle)
    config.with_vocab(tokenizer.vocab_size)
    model = Model(config, load_weights(config, bundle), tokenizer, ChatTemplate(tokenizer, PLAIN_TEXT))
    return EvaluatedModel(model, mesh, TextEncoder(tokenizer))


def gathered(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
    """The weights in the dtype that they are used in, whole on this process's first device of `mesh`."""
    dtype = compute_dtype(config)

    def used(path: tuple[Any, ...], array: jax.Array) -> jax.Array:
        return array if path[-1].key in KEPT_IN_FLOAT32 else array.astype(dtype)

    everywhere = NamedSharding(mesh, P())
    whole = jax.jit(lambda tree: jax.tree_util.tree_map_with_path(used, tree), out_shardings=everywhere)(params)
    return jax.tree.map(lambda array: array.addressable_shards[0].data, whole)
