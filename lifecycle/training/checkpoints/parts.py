"""One process's part of a checkpoint, where no disk holds all parts.

Orbax has each process write its arrays' pieces to an OCDBT store of its own, `ocdbt.process_N`, and process 0 joins
them: it copies their B-trees, which refer to the values in the parts' data files. So it needs the trees of other
processes, and none of their values. `split` moves a part's data below a new tree; the tree, with the small values,
goes to process 0, the files of the other values go to where the checkpoint is kept. What must hold: the joined
checkpoint reads like one that was written on one disk. OCDBT: https://google.github.io/tensorstore/kvstore/ocdbt/
"""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import tensorstore as ts

PART = "ocdbt.process_"
METADATAS = "array_metadatas"  # each process's file in it is compared by process 0
VALUES = "values"
# All processes write pieces of what all of them hold whole, such as norms, and so read pieces from all: in the files of
# large values, these pieces would have every host fetch every file.
SMALL_BYTES = 16 << 10


class Value(NamedTuple):
    """A value that a tree refers to: its key, its file's name in the tree's folder, and its size there."""

    key: str
    file: str
    bytes: int


def prepare(unfinished: Path, items: Iterable[str], suffix: str) -> None:
    """Makes the folders for whose appearance Orbax waits in all processes but the first, unless they are there: those
    of a checkpoint's items, or its own if it has none."""
    for folder in [unfinished / f"{item}{suffix}" for item in items] or [unfinished]:
        (folder / METADATAS).mkdir(parents=True, exist_ok=True)


def split(part: Path) -> None:
    """Puts a new tree with the small values into a part; its data files move to a folder below, to which the tree
    refers. A context in which the part was opened before does not read it any more."""
    moving = part.with_name(f"{part.name}.{VALUES}")
    part.rename(moving)
    part.mkdir()
    moving.rename(part / VALUES)
    context = ts.Context()
    before, tree = _open(part / VALUES, context), _open(part, context)
    before.experimental_copy_range_to(tree).result()
    with ts.Transaction() as writing:
        for value in values_in(part / VALUES):
            if value.bytes <= SMALL_BYTES:
                tree.with_transaction(writing)[value.key] = before[value.key]
    (part / VALUES / "manifest.ocdbt").unlink()  # the tree before: nothing reads it any more


def values_in(folder: Path) -> Iterator[Value]:
    """The values to which the tree in a folder refers; not those that are in its nodes. No value need be there."""
    base = ts.KvStore.open({"driver": "file", "path": f"{folder.absolute()}/"}).result()
    root = ts.ocdbt.dump(base).result()["versions"][-1]["root"]
    if "location" in root:  # not of an empty tree
        yield from _below(base, root["location"], b"")


def _below(base: ts.KvStore, node: str, prefix: bytes) -> Iterator[Value]:
    for entry in ts.ocdbt.dump(base, node).result()["entries"]:
        if "location" in entry:
            yield from _below(base, entry["location"], prefix + entry["subtree_common_prefix"])
        elif "indirect_value" in entry:  # value:FOLDER:FILE:OFFSET:LENGTH
            _, of, file, _, length = entry["indirect_value"].split(":")
            yield Value((prefix + entry["key"]).decode(), of + file, int(length))


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
