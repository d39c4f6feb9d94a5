"""A policy of one layer that answers every message with one of ten digits, and its stage with episodes."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax

from lifecycle.core.config import validate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import ModelConfig
from lifecycle.rl.batches import PolicyBatches
from lifecycle.rl.config import GrpoConfig
from lifecycle.rl.episodes import Episodes
from lifecycle.rl.measured import measured_columns
from lifecycle.rl.openings import Conversations, Openings
from lifecycle.rl.rollouts import Sampler
from lifecycle.rl.sampling import Prompt
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.row_encoder import EncodedPrompt, EncodedRow
from lifecycle.training.batches import RowBatches
from lifecycle.training.likelihood import SftConfig
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.optimizer_config import OptimizerConfig, ScheduleConfig
from lifecycle.training.packing import ExampleRows
from lifecycle.training.trainer import Trainer
from tests.rl.toy_policy import SHORT, one_device

TOKENIZER = ByteTokenizer()
TEMPLATE = ChatTemplate(TOKENIZER, SHORT)
MODEL = ModelConfig(
    vocab_size=264, d_model=32, d_ff=64, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16, max_seq_len=32
)  # fmt: skip
SEED = 5


def conversation(digits: str) -> EncodedRow:
    """Digits that user and assistant say by turns; the assistant's are learned."""
    messages = [{"role": ("user", "assistant")[at % 2], "content": digit} for at, digit in enumerate(digits)]
    rendered = TEMPLATE.render(messages)
    return EncodedRow(rendered.ids, rendered.assistant_mask)


@cache
def talker() -> Any:
    """Its weights: any digit is as likely."""
    rows = [conversation(f"{n * 7919 % 10**6:06d}") for n in range(1, 128)]
    source = RowBatches.on_mesh(ExampleRows(rows, 32, SEED), 16, one_device())
    tree = {"steps": 80, "seq_len": 32, "global_batch_size": 16}
    objective = build_objective(MODEL, validate(SftConfig, tree))
    optimizer = OptimizerConfig(learning_rate=0.01, schedule=ScheduleConfig(kind="constant", warmup_steps=0))
    trainer = Trainer(MODEL, objective, 80, optimizer, one_device(), seed=SEED)
    for step in range(80):
        trainer.step(source.batch(step))
    source.close()
    return jax.tree.map(lambda array: array.copy(), trainer.params)


def settings(**own: Any) -> GrpoConfig:
    """A stage of four steps, whose episodes have three turns of two tokens."""
    tree: dict[str, Any] = {
        "steps": 4, "seq_len": 32, "global_batch_size": 16, "prompts_per_step": 4, "group_size": 4,
        "max_prompt_tokens": 8, "max_completion_tokens": 24, "num_slots": 8, "log_every": 1, "eval_every": 2,
        "episodes": {"environment": "tests/rl/beat.py:Beat", "max_turns": 4},
        "optimizer": {"learning_rate": 0.01, "schedule": {"kind": "constant", "warmup_steps": 0}},
        "checkpoint": {"every": 1},
    }  # fmt: skip
    return validate(GrpoConfig, tree | own)


def prompts(config: GrpoConfig, template: ChatTemplate = TEMPLATE) -> list[Prompt]:
    """Rows with the digits below nine."""
    assert config.episodes is not None
    opened = Openings(config.episodes, Conversations(template))
    rows = [opened(EncodedPrompt([0], str(digit), {"letter": "x"})) for digit in range(8)]
    return [Prompt(number, row.ids, row.prompt, row.columns) for number, row in enumerate(rows)]


def sampler_of(config: GrpoConfig, template: ChatTemplate = TEMPLATE) -> Sampler:
    """What plays with the talker."""
    blank = Model(MODEL, {}, TOKENIZER, template, SamplingParams(stop_ids=tuple(template.stop_ids)))
    return Sampler(blank, config, SEED, one_device(), player=Episodes(config, Conversations(template)))


def batches_of(config: GrpoConfig, start: Any, asked: Sequence[Prompt] | None = None) -> PolicyBatches:
    """The batches of a stage whose first weights are `start`."""
    columns = measured_columns(MODEL, config, one_device(), start)
    return PolicyBatches(prompts(config) if asked is None else asked, config, sampler_of(config), SEED, columns)
