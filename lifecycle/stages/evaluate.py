"""Stage `evaluate`: runs the tasks on the weights of one training stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.scoring import loglikelihoods
from lifecycle.ops.evals.encoder import TextEncoder
from lifecycle.ops.evals.scoring import Pair, evaluate
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig
from lifecycle.stages.training import trained_params
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Evaluated:
    """A model as the evaluation's scorer and generator."""

    model: Model

    @property
    def max_seq_len(self) -> int:
        return self.model.config.max_seq_len

    def loglikelihoods(self, pairs: Sequence[Pair]) -> Sequence[float]:
        return loglikelihoods(self.model.config, self.model.params, pairs)

    def generate(self, prompts: Sequence[list[int]], max_tokens: int, stop: Sequence[str]) -> Sequence[str]:
        greedy = SamplingParams(temperature=0, max_tokens=max_tokens, stop=tuple(stop))
        return [completion.text for completion in generate(self.model, prompts, greedy)]


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress, trained: str) -> Outcome:
    folder = inputs["tokenizer"].path
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate.load(folder, tokenizer)
    evaluated = Evaluated(Model(config.model, trained_params(inputs[trained], config.model), tokenizer, template))
    folders = {name: artifact.path for name, artifact in inputs.items()}
    encoder = TextEncoder(tokenizer, template)
    return Outcome({"tasks": evaluate(config.evaluate, folders, encoder, evaluated, evaluated, out, progress)})
