"""Which item of a checkpoint holds which arrays of a state.

Parameters, their average and a reference have items of their own, in which they have the parameters' canonical names,
so that a reader of weights opens nothing else. All other arrays are in `opt_state`, by their names in the state.
"""

from collections.abc import Iterable, Mapping

from lifecycle.model.stacks import REFERENCE
from lifecycle.training.average import AVERAGE

PARAMS, OPT_STATE = "params", "opt_state"
# The item's arrays, and how their names in the state begin.
PREFIXES = {PARAMS: f"{PARAMS}.", AVERAGE: f"{OPT_STATE}.{AVERAGE}.weights.", REFERENCE: f"{REFERENCE}."}


def by_item[T](flat: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """The arrays of a state, by item and by their name there; without the average if there is none."""
    items: dict[str, dict[str, T]] = {PARAMS: {}, OPT_STATE: {}}
    for name, leaf in flat.items():
        item = next((item for item, prefix in PREFIXES.items() if name.startswith(prefix)), OPT_STATE)
        items.setdefault(item, {})[name.removeprefix(PREFIXES.get(item, ""))] = leaf
    return items


def joined[T](items: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """The arrays by their name in the state: undoes `by_item`."""
    return {PREFIXES.get(item, "") + name: leaf for item, arrays in items.items() for name, leaf in arrays.items()}


def weights_item(files: Iterable[str]) -> str:
    """The item with the weights that a run is for, of a checkpoint with these files: their average, if it keeps one."""
    return AVERAGE if any(name.startswith(f"{AVERAGE}/") for name in files) else PARAMS
