"""How much each step cuts from the documents of a stretch, for the funnel."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lifecycle.data.selecting.cuts import NO_SPANS, CutStretch, left_of


class CutSizes(NamedTuple):
    """Of the documents that a step cuts, ascending: how many passages of each, and the bytes that are left of it."""

    ordinals: NDArray[np.int64]
    num_passages: NDArray[np.int64]
    text_bytes: NDArray[np.int64]

    def applied(self, flow: pa.Table) -> tuple[pa.Table, dict[str, int]]:
        """Documents with the sizes that they have after the step, and what it did to them: the number of passages, of
        documents that they are cut from, and of bytes that these lose."""
        ordinals, sizes = flow["ordinal"].to_numpy(), flow["text_bytes"].to_numpy().copy()
        is_here = np.isin(self.ordinals, ordinals)
        at, before = np.searchsorted(ordinals, self.ordinals[is_here]), int(sizes.sum())
        sizes[at] = self.text_bytes[is_here]
        counts = {
            "passages_cut": int(self.num_passages[is_here].sum()), "documents_cut": int(is_here.sum()),
            "bytes_cut": before - int(sizes.sum()),
        }  # fmt: skip
        return flow.set_column(flow.schema.get_field_index("text_bytes"), "text_bytes", pa.array(sizes)), counts


def cut_sizes(stretch: CutStretch, tagged: pa.Table) -> Mapping[str, CutSizes]:
    """By step; `tagged` has the texts of the stretch before any is cut."""
    spans, sizes = dict.fromkeys(range(stretch.first, stretch.end), NO_SPANS), dict[str, CutSizes]()
    for file in stretch.files:
        cuts = file.read()
        ordinals, nums = np.unique(cuts.ordinals, return_counts=True)
        left: list[int] = []
        for ordinal in ordinals.tolist():
            spans[ordinal] = np.concatenate([spans[ordinal], cuts.of(ordinal)])
            text = tagged["text"][ordinal - stretch.first].as_py().encode()
            left.append(len(left_of(text, spans[ordinal])[0]))
        sizes[file.step] = CutSizes(ordinals, nums, np.array(left, np.int64))
    return sizes
