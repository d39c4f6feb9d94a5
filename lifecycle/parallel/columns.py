"""The columns of a batch: which dimensions each has, and so how it is cut over a mesh.

Every column's first dimension is the rows. A token's column has the row's positions next, a segment's the groups of
segments that are packed into a row. What must hold: a name has one meaning in all batches; one that nobody has declared
is an error, because a device would get positions that are not its own.
"""

from typing import Literal

type ColumnAxes = Literal["row", "segment", "token"]

_AXES: dict[str, ColumnAxes] = {}


class ColumnError(ValueError):
    """A batch has a column that nobody has declared, or one is declared twice."""


def declare(axes: ColumnAxes, *names: str) -> None:
    """Says which dimensions columns have: `row` `[B]`, `segment` `[B, P, ...]`, `token` `[B, T, ...]`."""
    for name in names:
        if _AXES.setdefault(name, axes) != axes:
            raise ColumnError(f"column {name!r} is declared per {_AXES[name]} already; choose another name")


def axes_of_column(name: str) -> ColumnAxes:
    """The dimensions of a column, by its name."""
    if name not in _AXES:
        known = ", ".join(_AXES)
        raise ColumnError(
            f"a batch has a column {name!r}, known: {known}; declare it with "
            "lifecycle.parallel.columns.declare('row' | 'segment' | 'token', NAME)"
        )
    return _AXES[name]


TOKEN_COLUMNS = ("tokens", "targets", "positions", "segment_ids", "loss_mask")  # what every batch has
declare("token", *TOKEN_COLUMNS)
declare("row", "row")  # the row's number in the global batch, which a step adds
