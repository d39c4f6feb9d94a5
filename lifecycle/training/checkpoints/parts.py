"""One process's part of a checkpoint, where no disk holds all parts.

Orbax has each process write its arrays' pieces to an OCDBT store of its own, `ocdbt.process_N`, and process 0 joins
them: it copies their B-trees, which refer to the values in the parts' data files. So it needs the trees of other
processes, and none of their values. `split` moves a part's data below a new tree; the tree, small, goes to process 0,
the values go to where the checkpoint is kept. What must hold: the joined checkpoint reads like one that was written on
one disk. OCDBT: https://google.github.io/tensorstore/kvstore/ocdbt/
"""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import tensorstore as ts

PART = "ocdbt.process_"
METADATAS = "array_metadatas"  # each process's file in it is compared by process 0
VALUES = "values"


def prepare(unfinished: Path, items: Iterable[str], suffix: str) -> None:
    """Makes the folders for whose appearance Orbax waits in all processes but the first: those of a checkpoint's items,
    or its own if it has none."""
    for item in items:
        (unfinished / f"{item}{suffix}" / METADATAS).mkdir(parents=True)
    if not items:
        (unfinished / METADATAS).mkdir(parents=True)


def split(part: Path) -> None:
    """Puts a new tree into a part; its data files move to a folder below, to which the tree refers."""
    moving = part.with_name(f"{part.name}.{VALUES}")
    part.rename(moving)
    part.mkdir()
    moving.rename(part / VALUES)
    context = ts.Context()
    _open(part / VALUES, context).experimental_copy_range_to(_open(part, context)).result()
    (part / VALUES / "manifest.ocdbt").unlink()  # the tree before: nothing reads it any more


def parts_in(unfinished: Path, process: int) -> list[Path]:
    """The parts of a process in a checkpoint: of each item, or its own if it has none."""
    return sorted(unfinished.glob(f"**/{PART}{process}"))


def is_value(name: str) -> bool:
    """Whether a file of a part that was split holds values, which process 0 does not need."""
    return VALUES in PurePosixPath(name).parts


def final_name(name: str, suffix: str) -> str:
    """The name that a file has once Orbax has renamed the folders that are not complete."""
    return "/".join(part.removesuffix(suffix) for part in name.split("/"))


def _open(folder: Path, context: ts.Context) -> ts.KvStore:
    return ts.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder.absolute()}/"}}, context=context
    ).result()
