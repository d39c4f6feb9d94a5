"""Stage `evaluate`: runs the tasks on the weights of one training stage."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.evals.encoder import TextEncoder
from lifecycle.evals.scoring import Pair, evaluate
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig, num_params
from lifecycle.model.decoder import KEPT_IN_FLOAT32, Params, compute_dtype
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig
from lifecycle.stages.training import trained_params
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.scoring import loglikelihoods


@dataclass(frozen=True)
class Evaluated:
    """A model as the evaluation's scorer and generator: text is scored where the weights lie, on `mesh`."""

    model: Model
    mesh: Mesh

    @property
    def max_seq_len(self) -> int:
        return self.model.config.max_seq_len

    def loglikelihoods(self, pairs: Sequence[Pair]) -> Sequence[float]:
        return loglikelihoods(self.model.config, self.model.params, pairs, self.mesh)

    def generate(self, prompts: Sequence[list[int]], max_tokens: int, stop: Sequence[str]) -> Sequence[str]:
        greedy = SamplingParams(temperature=0, max_tokens=max_tokens, stop=tuple(stop))
        return [completion.text for completion in generate(self._on_one_device, prompts, greedy)]

    @cached_property
    def _on_one_device(self) -> Model:
        """What the engine takes: it decodes on one device, each process on its first."""
        if self.mesh.size == 1:
            return self.model
        return replace(self.model, params=gathered(self.model.config, self.model.params, self.mesh))


def gathered(config: ModelConfig, params: Params, mesh: Mesh) -> Params:
    """The weights in the dtype that they are used in, whole on this process's first device of `mesh`."""
    dtype = compute_dtype(config)

    def used(path: tuple[Any, ...], array: jax.Array) -> jax.Array:
        return array if path[-1].key in KEPT_IN_FLOAT32 else array.astype(dtype)

    everywhere = NamedSharding(mesh, P())
    whole = jax.jit(lambda tree: jax.tree_util.tree_map_with_path(used, tree), out_shardings=everywhere)(params)
    return jax.tree.map(lambda array: array.addressable_shards[0].data, whole)


def require_room(config: RunConfig) -> None:
    """Raises `ConfigError` where a task generates and the model cannot be whole on one device beside its part of it.

    A device that does not tell its memory (a CPU) is not asked; one that trained the whole model has room.
    """
    tasks = [task.name for task in config.evaluate.tasks if task.kind == "generate"]
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if not tasks or limit is None or config.mesh.size == 1:
        return
    dtype, size = compute_dtype(config.model), num_params(config.model)
    held = 4 * size * config.mesh.replica // config.mesh.size  # float32, cut over every other axis
    whole = size * (2 if dtype == "bfloat16" else 4)
    if held + whole > limit:
        raise ConfigError(
            f"evaluate.tasks: {', '.join(tasks)} generate on one device, which has {limit / 1e9:.1f} GB; the model "
            f"takes {whole / 1e9:.1f} GB there in {dtype}, beside {held / 1e9:.1f} GB of the weights as trained. Leave "
            "these tasks out (bits_per_byte and multiple_choice are scored on the whole mesh), or ask them of the "
            "exported bundle with `lifecycle evaluate` on a device that holds it"
        )


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress, trained: str) -> Outcome:
    require_room(config)
    mesh, folder = build_mesh(config.mesh), inputs["tokenizer"].path
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate.load(folder, tokenizer)
    params = trained_params(inputs[trained], config.model, mesh)
    evaluated = Evaluated(Model(config.model, params, tokenizer, template), mesh)
    folders = {name: artifact.path for name, artifact in inputs.items()}
    encoder = TextEncoder(tokenizer, template)
    return Outcome({"tasks": evaluate(config.evaluate, folders, encoder, evaluated, evaluated, out, progress)})
