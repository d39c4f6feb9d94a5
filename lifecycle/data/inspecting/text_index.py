"""The text index: which documents of an artifact of stage `documents` have a passage word for word.

It has all runs of `PASSAGE` words, each with the numbers of its documents, kept and held-out ones, and a compressed
copy of their texts in small frames, from which hits are verified (`text_lookup.py`): a frame is read in 0.1 ms, a row
group of documents in 2 to 100. What must hold: each passage of as many words is found. The index is made in blocks, and
memory holds one of them, however much text there is.

Peers keep a suffix array over tokens, 7 bytes for each (Liu et al. 2024, arXiv:2401.17377, section 3), or a compressed
one (Xu et al. 2025, arXiv:2506.12229). They find shorter passages too, but these are in documents by chance. Winnowing
(Schleimer et al. 2003, SIGMOD) would halve the table, but leaves open where a passage ends: for a phrase that many
documents have, all of them had to be read, 50,000 in a gigabyte of manuals.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.core.arrow_text import utf8
from lifecycle.core.artifact import Artifact, ArtifactError, Draft, open_artifact, require_intact
from lifecycle.core.file_hashes import FileHashes
from lifecycle.core.files import alone
from lifecycle.core.progress import Progress
from lifecycle.data.documents import Split
from lifecycle.data.inspecting.selected import num_documents, read_parts
from lifecycle.data.ngrams import Hashes
from lifecycle.data.placed_words import letters
from lifecycle.data.tagging.code_version import code_version

PASSAGE = 8  # words of the shortest passage that is found; the presence of shorter ones proves nothing
STAGE = "index"
INDEXED: tuple[Split, ...] = ("kept", "heldout")
BLOCK_ENTRIES, BLOCK_TEXTS = 1 << 24, 1 << 16  # at most, about, in a block: 130 MB of them; a text's number has 16 bits
BLOCK_BYTES = 1 << 30
FRAME_BYTES = 64 << 10  # of texts that are compressed together; a longer text is a frame
_BUCKET = 32  # entries, about
_PARTS = ("starts", "prints", "texts", "ends", "frames")  # arrays of a block


def made_index(documents: Artifact, progress: Progress) -> Artifact:
    """The index of documents, beside them; made if it is not there or damaged. An index of other documents, or of
    other code, has another key."""
    config = {"code": code_version(__name__), "passage": PASSAGE}
    draft = Draft(documents.path.parent, STAGE, config, {"documents": documents})
    if (found := _intact(draft)) is None:
        with alone(draft.root / f".{STAGE}.lock"):
            if (found := _intact(draft)) is None:  # nor has another process made it
                if draft.final_path.exists():
                    progress.note(f"{draft.final_path}: damaged; it is made again")
                found = draft.commit(_write(documents.path, draft.open(), progress))
    return found


def _intact(draft: Draft) -> Artifact | None:
    try:
        require_intact(found := open_artifact(draft.final_path), FileHashes(draft.root))
    except ArtifactError:
        return None
    return found


def _write(documents: Path, folder: Path, progress: Progress) -> dict[str, int]:
    """Writes the index of these documents; returns its figures."""
    for leftover in folder.iterdir():  # of a killed run
        leftover.unlink()
    progress.start(STAGE, num_documents(documents, INDEXED))
    done = num_blocks = num_entries = num_bytes = 0
    block = _BlockWriter(folder, 0)
    for part in read_parts(documents, ["text"], INDEXED):
        if block.is_full(part.rows.num_rows):
            num_entries += block.finish()
            num_blocks += 1
            block = _BlockWriter(folder, num_blocks)
        num_bytes += block.add(part.rows["text"])
        done += part.rows.num_rows
        progress.update(done)
    num_entries += block.finish()
    return {
        "documents": done, "kept": num_documents(documents, ("kept",)), "text_bytes": num_bytes,
        "blocks": num_blocks + 1, "entries": num_entries,
    }  # fmt: skip


class _BlockWriter:
    """Writes a block: texts as they come, their entries at the end, sorted."""

    def __init__(self, folder: Path, number: int) -> None:
        self._prefix, self._folder = f"{number:05d}", folder
        self._codec = pa.Codec("zstd")
        self._file = (folder / f"{self._prefix}.zst").open("wb")
        self._entries: list[Hashes] = []
        self._num_entries = 0
        self._ends: list[int] = []
        self._frames: list[tuple[int, int, int]] = []  # (first text, byte of the text, byte of the file) of each
        self._pending: list[NDArray[np.uint8]] = []
        self._pending_bytes = self._num_bytes = self._written = 0

    def is_full(self, coming: int) -> bool:
        """Whether as many further texts belong into another block."""
        return bool(self._ends) and (
            self._num_entries >= BLOCK_ENTRIES or len(self._ends) + coming > BLOCK_TEXTS
            or self._num_bytes >= BLOCK_BYTES
        )  # fmt: skip

    def add(self, texts: pa.Array) -> int:
        """Adds texts; returns their bytes."""
        from lifecycle.data.inspecting.compiled_index import fingerprint

        data, offsets = utf8(texts)
        begin, end = int(offsets[0]), int(offsets[-1])
        entries = np.empty((end - begin) // 2 + 1, np.uint64)
        num = fingerprint(data, offsets, letters(), len(self._ends), PASSAGE, entries)
        self._entries.append(entries[:num].copy())
        self._num_entries += num
        for low, high in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            self._add_text(data[low:high])
        return end - begin

    def finish(self) -> int:
        """Ends the block; returns how many entries it has."""
        from lifecycle.data.inspecting.compiled_index import PRINT_BITS, split_entries

        self._end_frame()
        self._frames.append((len(self._ends), self._num_bytes, self._written))
        self._file.close()
        bits = max(1, (self._num_entries // _BUCKET).bit_length())
        entries = np.concatenate([np.empty(0, np.uint64), *self._entries])
        self._entries.clear()
        entries &= np.uint64(0xFFFF | ((1 << (bits + PRINT_BITS)) - 1) << (64 - bits - PRINT_BITS))
        entries.sort()
        starts = np.empty((1 << bits) + 1, np.uint32)
        prints, texts = np.empty(len(entries), np.uint16), np.empty(len(entries), np.uint16)
        num = split_entries(entries, bits, starts, prints, texts)
        ends, frames = np.array(self._ends, np.int64), np.array(self._frames, np.int64)
        for part, array in zip(_PARTS, (starts, prints[:num], texts[:num], ends, frames), strict=True):
            np.save(self._folder / f"{self._prefix}.{part}.npy", array)
        return num

    def _add_text(self, text: NDArray[np.uint8]) -> None:
        if self._pending and self._pending_bytes + len(text) > FRAME_BYTES:
            self._end_frame()
        if not self._pending:
            self._frames.append((len(self._ends), self._num_bytes, self._written))
        self._pending.append(text.copy())
        self._pending_bytes += len(text)
        self._num_bytes += len(text)
        self._ends.append(self._num_bytes)

    def _end_frame(self) -> None:
        if self._pending:
            self._written += self._file.write(self._codec.compress(np.concatenate(self._pending), asbytes=True))
            self._pending, self._pending_bytes = [], 0


class Block:
    """A block of an index that is read; its arrays stay in their files."""

    def __init__(self, folder: Path, number: int, first: int) -> None:
        prefix = folder / f"{number:05d}"
        read = {part: np.load(f"{prefix}.{part}.npy", mmap_mode="r") for part in _PARTS}
        self.starts, self.prints, self.texts = read["starts"], read["prints"], read["texts"]
        self.first = first  # the number of its first text in the index
        self._ends, self._frames = np.array(read["ends"]), np.array(read["frames"])
        self._data, self._codec = np.memmap(f"{prefix}.zst", np.uint8) if self._frames[-1, 2] else b"", pa.Codec("zstd")
        self._frame = lru_cache(2)(self._read_frame)

    @property
    def num_texts(self) -> int:
        """How many texts it has."""
        return len(self._ends)

    def cost(self, text: int) -> int:
        """What reading a text costs, in bytes of which words are found: a byte of its frame is read in an eighth."""
        frame = self._frame_of(text)
        own = int(self._ends[text]) - (int(self._ends[text - 1]) if text else 0)
        return own + int(self._frames[frame + 1, 1] - self._frames[frame, 1]) // 8

    def text(self, number: int) -> NDArray[np.uint8]:
        """A text, UTF-8."""
        frame = self._frame_of(number)
        first = int(self._frames[frame, 1])
        begin = int(self._ends[number - 1]) if number else 0
        return self._frame(frame)[begin - first : int(self._ends[number]) - first]

    def _frame_of(self, text: int) -> int:
        return int(np.searchsorted(self._frames[:-1, 0], text, side="right")) - 1

    def _read_frame(self, frame: int) -> NDArray[np.uint8]:
        (_, begin, place), (_, end, behind) = self._frames[frame : frame + 2].tolist()
        if end == begin:
            return np.empty(0, np.uint8)
        data = self._codec.decompress(self._data[place:behind], end - begin)
        return np.frombuffer(data, np.uint8)


def read_blocks(index: Artifact) -> Iterator[Block]:
    """The blocks of an index."""
    first = 0
    for number in range(index.stats["blocks"]):
        yield (block := Block(index.path, number, first))
        first += block.num_texts
