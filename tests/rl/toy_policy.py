"""A policy of one layer that says letters, its prompts, and its batches, shared by tests of rollouts."""

from typing import Any

from lifecycle.core.config import validate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.config import GrpoConfig, RolloutConfig
from lifecycle.rl.measured import measured_columns
from lifecycle.rl.reward_stage import ModelReward
from lifecycle.rl.rollouts import Sampler
from lifecycle.rl.sampling import Prompt
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate

TOKENIZER = ByteTokenizer()
MODEL = ModelConfig(
    vocab_size=264, d_model=32, d_ff=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16, max_seq_len=32
)  # fmt: skip
MESH = build_mesh(MeshConfig())
SEED = 3


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


def sampler_of(config: RolloutConfig, model: ModelConfig, by_model: ModelReward | None = None) -> Sampler:
    """What samples from a model."""
    blank = Model(model, {}, TOKENIZER, ChatTemplate(TOKENIZER), SamplingParams(stop_ids=(TOKENIZER.eos_id,)))
    return Sampler(blank, config, SEED, MESH, by_model)


def batches_of(config: RolloutConfig, start: Any, model: ModelConfig = MODEL) -> PolicyBatches:
    """The batches of a stage whose first weights are `start`."""
    columns = measured_columns(model, config, MESH, start)
    return PolicyBatches(prompts(), config, sampler_of(config, model), SEED, columns)
