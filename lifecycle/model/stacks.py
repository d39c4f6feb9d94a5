"""Stacks: layers of equal structure share arrays with a leading layer axis, and one scan applies them.

A pattern of layer kinds (local/global) is scanned over its period; layers that do not fill a period, and the dense
layers before a mixture of experts, are groups of their own. 126 layers trace in the time of one period.
"""

from dataclasses import dataclass

from lifecycle.model.config import ModelConfig

MODULES = "mtp"  # the key, beside `blocks`, of the stack of prediction modules (`model/mtp.py`)
MODULES_STACK = "0+1"
DRAFTER = "drafter"  # the key, beside `blocks`, of the drafter (`model/drafter.py`)
SCORE = "score"  # the key, beside `blocks`, of the vector of rewards
REFERENCE = "reference"  # the key, beside `blocks`, of the model that a stage keeps for its reference
ADAPTER = "adapter"  # the key, beside `blocks`, of the adapter that a stage trains (`model/lora.py`)


def stack_name(first: int, period: int) -> str:
    """The key, below `blocks`, of the stack of layers `first, first + period, ...`."""
    return f"{first}+{period}"


@dataclass(frozen=True)
class LayerGroup:
    """Layers `first` to `first + period * repeats - 1`: `period` stacks of `repeats` layers each."""

    first: int
    period: int
    repeats: int

    @property
    def stacks(self) -> list[str]:
        """The stacks' names, in the order of their first layers."""
        return [stack_name(self.first + offset, self.period) for offset in range(self.period)]


def layer_groups(config: ModelConfig) -> list[LayerGroup]:
    """The model's layers in order, as groups."""
    dense = 0 if config.moe is None else config.moe.first_dense_layers
    return [*_groups(config, 0, dense), *_groups(config, dense, config.num_layers)]


def _groups(config: ModelConfig, start: int, end: int) -> list[LayerGroup]:
    period = len(config.layer_pattern) if len(set(config.layer_pattern)) > 1 else 1
    repeats, rest = divmod(end - start, period)
    groups = [LayerGroup(start, period, repeats), LayerGroup(end - rest, rest, 1)]
    return [group for group in groups if group.period * group.repeats]
