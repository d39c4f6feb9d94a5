"""A policy of one layer that says letters, its prompts, and its batches, shared by tests of rollouts."""

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lifecycle.core.config import validate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.config import GrpoConfig, RolloutConfig
from lifecycle.rl.episodes import Episodes
from lifecycle.rl.measured import measured_columns
from lifecycle.rl.openings import Conversations
from lifecycle.rl.reward_stage import ModelReward
from lifecycle.rl.rollouts import Sampler
from lifecycle.rl.sampling import Prompt
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import DEFAULT_TEMPLATE, ChatTemplate
from lifecycle.training.batches import HostBatch

# A message is a mark, the first letter of its role, its content and a mark.
SHORT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'][0] + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>a' }}{% endif %}"
)
TOKENIZER = ByteTokenizer()
MODEL = ModelConfig(
    vocab_size=264, d_model=32, d_ff=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16, max_seq_len=32
)  # fmt: skip
SEED = 3


@cache
def one_device() -> Mesh:
    """The mesh of one device."""
    return build_mesh(MeshConfig())


def letters(prompts: Any, completions: list[str], letter: list[str], **_: Any) -> list[float]:
    """How much of a completion is the row's letter."""
    return [text.count(one) / max(len(text), 1) for text, one in zip(completions, letter, strict=True)]


def settings[C: RolloutConfig](kind: type[C] = GrpoConfig, **own: Any) -> C:
    """A stage of four steps."""
    tree: dict[str, Any] = {
        "steps": 4, "seq_len": 32, "global_batch_size": 8, "prompts_per_step": 3, "group_size": 4,
        "max_prompt_tokens": 8, "max_completion_tokens": 6, "num_slots": 4, "log_every": 1,
        "eval_every": 2, "rewards": [{"function": f"{__file__}:letters"}],
        "optimizer": {"learning_rate": 0.01}, "checkpoint": {"every": 1},
    }  # fmt: skip
    return validate(kind, tree | own)


def prompts() -> list[Prompt]:
    """One for each of five letters."""
    texts = [f"say {letter}" for letter in "abcde"]
    return [Prompt(i, [TOKENIZER.bos_id, *TOKENIZER.encode(t)], t, {"letter": t[-1]}) for i, t in enumerate(texts)]


def sampler_of(
    config: RolloutConfig, model: ModelConfig, by_model: ModelReward | None = None, mesh: Mesh | None = None
) -> Sampler:
    """What samples from a model."""
    template = ChatTemplate(TOKENIZER, DEFAULT_TEMPLATE if config.episodes is None else SHORT)
    blank = Model(model, {}, TOKENIZER, template, SamplingParams(stop_ids=(TOKENIZER.eos_id,)))
    player = None if config.episodes is None else Episodes(config, Conversations(template))
    return Sampler(blank, config, SEED, mesh or one_device(), by_model, player)


def batches_of(config: RolloutConfig, start: Any, model: ModelConfig = MODEL) -> PolicyBatches:
    """The batches of a stage whose first weights are `start`."""
    columns = measured_columns(model, config, one_device(), start)
    return PolicyBatches(prompts(), config, sampler_of(config, model), SEED, columns)


def later(params: Any, steps: int) -> Any:
    """Weights after some steps."""
    return jax.tree.map(lambda array: array * 1.05**steps, params)


def assert_same(one: HostBatch, other: HostBatch) -> None:
    """Equal to the bit."""
    assert one.keys() == other.keys()
    for name, column in one.items():
        np.testing.assert_array_equal(column, other[name])


def order(num: int) -> list[str]:
    """The letters of the first prompts in their order."""
    config = settings(prompts_per_step=1)
    listed = [batches_of(config, None).contents(step)[0]["prompts"][0] for step in range(num)]
    return ["abcde"[number] for number in listed]
