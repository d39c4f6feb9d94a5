"""A loaded model as the subject of an evaluation: scored and decoded on the mesh that holds its weights.

Training stages and bundles are evaluated through this one class, so the same weights get the same scores in both.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jax.sharding import Mesh

from lifecycle.evals.encoder import TextEncoder
from lifecycle.evals.greedy import greedy_loglikelihoods
from lifecycle.evals.subject import Pair
from lifecycle.inference.beam_search import beam_search
from lifecycle.inference.beams import BeamConfig
from lifecycle.inference.bundle import load_bundle, load_params
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import WeightFormat
from lifecycle.parallel.mesh import inference_mesh
from lifecycle.text.chat import ChatTemplate, read_template
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.scoring import loglikelihoods
from lifecycle.weights.published import load_config

PLAIN_TEXT = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # only the EOS ends it


@dataclass(frozen=True)
class EvaluatedModel:
    """A model whose weights are on `mesh`. For a base model the encoder has no chat template."""

    model: Model
    mesh: Mesh
    encoder: TextEncoder

    @property
    def max_seq_len(self) -> int:
        """The model's context length in tokens."""
        return self.model.config.max_seq_len

    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[float]:
        """log p(continuation | context) in nats, for each pair."""
        return loglikelihoods(self.model.config, self.model.params, pairs, self.mesh)

    def greedy_loglikelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """The same, and whether each of the continuation's ids is the likeliest one after those before it."""
        return greedy_loglikelihoods(
            self.model.config, self.model.params, pairs, self.mesh, self.model.tokenizer.vocab_size
        )

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, stop: Sequence[str], beams: BeamConfig | None = None
    ) -> list[str]:
        """Greedy continuations, or the best that a beam search finds, without the stop string or the end of the turn.

        Raises `ConfigError` if the mesh's devices cannot decode the model, and for too many beams.
        """
        greedy = SamplingParams(temperature=0, max_tokens=max_tokens, stop=tuple(stop))
        mesh = inference_mesh(self.mesh)
        if beams is not None:
            return [found[0].text for found in beam_search(self.model, prompts, beams, max_tokens, stop, mesh=mesh)]
        return [completion.text for completion in generate(self.model, prompts, greedy, mesh=mesh)]


def chat_model(model: Model, mesh: Mesh) -> EvaluatedModel:
    """A chat model whose weights are on `mesh`, as the subject of an evaluation."""
    return EvaluatedModel(model, mesh, TextEncoder(model.tokenizer, model.template.dated))


def open_bundle(bundle: Path, max_seq_len: int, mesh: Mesh, weights: WeightFormat | None = None) -> EvaluatedModel:
    """A bundle's model with its weights in a format and its context limited to `max_seq_len`; without a chat template
    it takes plain text only.

    Raises what `load_bundle` raises for a folder that is not a bundle.
    """
    has_turns = read_template(bundle) is not None
    subject = chat_model(load_bundle(bundle, mesh, weights), mesh) if has_turns else _base_model(bundle, mesh, weights)
    config = subject.model.config
    context = {"max_seq_len": min(max_seq_len, config.max_seq_len)}
    return replace(subject, model=replace(subject.model, config=config.model_copy(update=context)))


def _base_model(bundle: Path, mesh: Mesh, weights: WeightFormat | None) -> EvaluatedModel:
    config = load_config(bundle).trunk
    tokenizer = load_tokenizer(bundle, config.vocab_size)
    params = load_params(config, bundle, mesh, weights)
    model = Model(config, params, tokenizer, ChatTemplate(tokenizer, PLAIN_TEXT))
    return EvaluatedModel(model, mesh, TextEncoder(tokenizer))
