"""Stores of pages: what the tokens of rows have left in a layer's cache, in the compute dtype or in 8 bits.

Keys and values are in one array, so that a page is one copy for a kernel; a latent's value is a part of its key. In 8
bits every part of every token's entry has a scale of its own, in float32, in an array with the same pages, as vLLM's
`int8_per_token_head` and `fp8_per_token_head` have (a scale for a whole tensor needs calibration). So what is stored of
a token depends on nothing but itself: not on the chunk that it came with, nor on who shares its page. What must hold:
attention reads of every token what is stored, of the newest too, so that chunks may end anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np

from lifecycle.core.platform import platform
from lifecycle.core.typing import Array, Float, Int, Shaped
from lifecycle.kernels.layout import LANES
from lifecycle.kernels.paged_rows import Rows
from lifecycle.kernels.quantised import quantise


@dataclass(frozen=True)
class Entry:
    """What is stored of a token for a head: parts, one after the other, of these widths, in equal slices that lie
    apart. A part is whole slices, or there is one slice."""

    parts: tuple[int, ...]
    num_keys: int  # the first so many parts are the key
    value: int  # the part that is the value
    slices: int

    @classmethod
    def key_value(cls, key_dim: int, value_dim: int) -> "Entry":
        """A key, then a value."""
        return cls((key_dim, value_dim), 1, 1, _slices(key_dim, value_dim))

    @classmethod
    def latent(cls, rank: int, rotary: int) -> "Entry":
        """A latent, which is the value, then a rotary key; together they are the key."""
        return cls((rank, rotary), 2, 0, _slices(rank, rotary))

    @property
    def width(self) -> int:
        """Dimensions of all parts."""
        return sum(self.parts)

    @property
    def value_dim(self) -> int:
        """Dimensions of the value."""
        return self.parts[self.value]

    @property
    def cuts(self) -> list[slice]:
        """Where each part lies."""
        return [slice(end - width, end) for end, width in zip(accumulate(self.parts), self.parts, strict=True)]

    @property
    def of_no_number(self) -> np.ndarray:
        """What is stored of a token that is not finite, `[width]`."""
        entry = np.full(self.width, np.nan, np.float32)
        entry[self.cuts[self.value]] = 0.0
        return entry

    def cut(self, slices: Sequence[Array], where: slice) -> Array:
        """Dimensions `where` of entries in slices: some parts."""
        if self.slices == 1:
            return slices[0][..., where]
        width = slices[0].shape[-1]
        return jnp.concatenate(slices[where.start // width : where.stop // width], axis=-1)


def _slices(*parts: int) -> int:
    """On TPUs of the lanes' width: of wider 8-bit arrays a kernel wants another layout than XLA's scatter, and XLA
    copied the cache in each layer (2.5 s of an 8B's chunk). Elsewhere of a part each, if all are alike."""
    if platform() == "tpu" and not any(width % LANES for width in parts):
        return sum(parts) // LANES
    return len(parts) if len(set(parts)) == 1 else 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PageStore:
    """Pages of all layers of a stack."""

    values: Shaped[Array, "L pages slices K S width"]
    scale: Float[Array, "L pages scales S"] | None  # of 8-bit values: of each head's parts, heads first
    entry: Entry = field(metadata={"static": True})

    @property
    def num_heads(self) -> int:
        """Key heads."""
        return self.values.shape[3]

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int], entry: Entry, dtype: jnp.dtype | str) -> "PageStore":
        """Pages of zeros for `[L, pages, K, S]` entries; with scales if the dtype has 8 bits."""
        layers, pages, heads, size = shape
        values = jnp.zeros((layers, pages, entry.slices, heads, size, entry.width // entry.slices), dtype)
        has_scale = values.dtype.itemsize == 1
        scale = jnp.zeros((layers, pages, heads * len(entry.parts), size), jnp.float32) if has_scale else None
        return cls(values, scale, entry)

    def written(self, layer: Int[Array, ""] | int, rows: Rows, new: Float[Array, "B T K D"]) -> "PageStore":
        """With a layer's new tokens in their pages."""
        new = new if self.scale is not None else new.astype(self.values.dtype)
        is_finite = jnp.isfinite(new).all(-1, keepdims=True)
        new = jnp.where(is_finite, new, self.entry.of_no_number.astype(new.dtype))
        if self.scale is None:
            return replace(self, values=rows.written(self.values, layer, self._sliced(new)))
        parts = [quantise(new[..., cut], (3,), self.values.dtype) for cut in self.entry.cuts]
        values = jnp.concatenate([part for part, _ in parts], axis=3)
        scale = jnp.concatenate([scale for _, scale in parts], axis=3).reshape(*new.shape[:2], -1)
        values = rows.written(self.values, layer, self._sliced(values))
        return PageStore(values, rows.written(self.scale, layer, scale), self.entry)

    def _sliced(self, entries: Shaped[Array, "B T K D"]) -> Shaped[Array, "B T slices K width"]:
        return entries.reshape(*entries.shape[:3], self.entry.slices, -1).swapaxes(2, 3)

    def page(
        self, layer: Int[Array, ""] | int, table: Int[Array, "B per_row"], number: Int[Array, ""]
    ) -> tuple[Float[Array, "B K S Dk"], Float[Array, "B K S Dv"]]:
        """Keys and values of each row's page number `number`; in float32 if they are stored in 8 bits."""
        return self._read(layer, jax.lax.dynamic_index_in_dim(table, number, 1, keepdims=False))

    def rows(
        self, layer: Int[Array, ""] | int, table: Int[Array, "B per_row"]
    ) -> tuple[Float[Array, "B slots K Dk"], Float[Array, "B slots K Dv"]]:
        """Keys and values of all pages of each row, likewise."""
        keys, values = (x.swapaxes(2, 3) for x in self._read(layer, table))
        return _flat(keys), _flat(values)

    def _read(self, layer: Array | int, ids: Int[Array, "*ids"]) -> tuple[Array, Array]:
        """Keys `[*ids, K, S, Dk]` and values of pages."""
        entry, cuts = self.entry, self.entry.cuts
        slices = [_pages(self.values, layer, ids, number) for number in range(entry.slices)]
        if self.scale is None:
            return entry.cut(slices, slice(0, cuts[entry.num_keys - 1].stop)), entry.cut(slices, cuts[entry.value])
        scales = _pages(self.scale, layer, ids)
        scales = scales.reshape(*ids.shape, self.num_heads, len(cuts), -1, 1)
        wide = [entry.cut(slices, cut).astype(jnp.float32) for cut in cuts]
        parts = [part * scales[..., number, :, :] for number, part in enumerate(wide)]
        return jnp.concatenate(parts[: entry.num_keys], axis=-1), parts[entry.value]


def _flat(pages: Shaped[Array, "B per_row S K D"]) -> Shaped[Array, "B slots K D"]:
    return pages.reshape(pages.shape[0], -1, *pages.shape[3:])


def _pages(array: Shaped[Array, "*dims"], layer: Array | int, ids: Int[Array, "*ids"], *part: int) -> Array:
    """Pages, or a part of each, `[*ids, ...]`; of a single page without a gather."""
    if ids.size > 1:
        return array[layer, ids, *part]
    page = array.shape[2 + len(part) :]
    start = (layer, ids.reshape(()), *part, *[0] * len(page))
    return jax.lax.dynamic_slice(array, start, (1, 1, *[1] * len(part), *page)).reshape(*ids.shape, *page)
