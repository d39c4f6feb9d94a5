"""Pages of the KV cache: which are free, cached or used, and whose they are. No device, no thread, no clock.

A row's pages come from a pool, a page for `size` positions (Kwon et al. 2023, "PagedAttention"). Pages of whole chunks
of a prompt have names: hashes of all tokens up to their end. Rows whose prompts begin alike share them, and a page that
no row uses keeps its contents until its place is needed, the least recently used first. Layers with a window have a
pool of their own, to which a row gives back the pages that its window has left.

What must hold: in each pool free, cached and used pages are all pages; only whole chunks are shared, whose contents
depend on nothing but their tokens and those before, so that a request's output does not depend on what is cached.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

NO_PAGE = -1  # in a row's table: a page that its window has left


@dataclass(frozen=True)
class PagePlan:
    """The pages of one group of slots. The longest chunk of a prompt is a multiple of a page."""

    size: int  # positions of a page
    buckets: Sequence[int]  # the padded lengths of chunks, the longest last
    num_pages: Mapping[str, int]  # by kind
    windows: Mapping[str, int | None]  # by kind; None: a row keeps all its pages

    @property
    def chunk(self) -> int:
        """The longest chunk."""
        return self.buckets[-1]


class PagePool:
    """Pages of one kind."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(reversed(range(num_pages)))
        self._users: dict[int, int] = {}  # of each page in use, how many rows
        self._cached: OrderedDict[int, None] = OrderedDict()  # named pages that no row uses, the longest unused first
        self._names: dict[int, bytes] = {}
        self._pages: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Pages whose contents nobody needs."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Named pages that no row uses."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Pages that rows use."""
        return len(self._users)

    def knows(self, name: bytes) -> bool:
        """Whether a page has this name."""
        return name in self._pages

    def is_cached(self, name: bytes) -> bool:
        """Whether a page has this name and no row uses it."""
        return self._pages.get(name) in self._cached

    def take(self) -> int:
        """A free page, or else the one that has been unused for longest, without its name."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._cached.popitem(last=False)
            del self._pages[self._names.pop(page)]
        self._users[page] = 1
        return page

    def share(self, name: bytes) -> int:
        """The page of a name, with one more user."""
        page = self._pages[name]
        self._cached.pop(page, None)
        self._users[page] = self._users.get(page, 0) + 1
        return page

    def name(self, page: int, name: bytes) -> None:
        """Names a page, unless another has the name."""
        if name not in self._pages:
            self._pages[name], self._names[page] = page, name

    def forget_name(self, page: int) -> None:
        """Nobody finds the page by its name any more; rows that use it go on."""
        if (name := self._names.pop(page, None)) is not None:
            del self._pages[name]

    def give_back(self, page: int) -> None:
        """Ends one use of a page."""
        self._users[page] -= 1
        if self._users[page]:
            return
        del self._users[page]
        if page in self._names:
            self._cached[page] = None
        else:
            self._free.append(page)


@dataclass
class Row:
    """A row's pages by kind, in the order of its positions, and the names of its prompt's whole chunks."""

    names: Sequence[bytes]
    tables: dict[str, list[int]] = field(default_factory=dict[str, list[int]])


class GroupPages:
    """The pools of one group of slots."""

    def __init__(self, plan: PagePlan) -> None:
        self._plan = plan
        self.pools = {kind: PagePool(number) for kind, number in plan.num_pages.items()}

    def num_shared(self, names: Sequence[bytes], length: int) -> int:
        """How many tokens of a prompt of `length`, from the first on, are cached. At least one is left to compute."""
        most = min(len(names), (length - 1) // self._plan.chunk)
        for kind, pool in self.pools.items():
            if self._plan.windows[kind] is None:
                pages = (pool.knows(self._name(names, number)) for number in range(most * self._per_chunk))
                most = sum(1 for _ in takewhile(bool, pages)) // self._per_chunk
        windows = [kind for kind, window in self._plan.windows.items() if window is not None]
        for count in range(most, 0, -1):
            if all(self.pools[kind].knows(name) for kind in windows for name in self._needed(kind, names, count)):
                return count * self._plan.chunk
        return 0

    def _needed(self, kind: str, names: Sequence[bytes], count: int) -> list[bytes]:
        """The names of the pages that the tokens after `count` chunks see."""
        first = self._first_seen(kind, count * self._plan.chunk)
        return [self._name(names, number) for number in range(first, count * self._per_chunk)]

    @property
    def _per_chunk(self) -> int:
        return self._plan.chunk // self._plan.size

    def _name(self, names: Sequence[bytes], number: int) -> bytes:
        """The name of a row's page: its chunk's, and its number in the chunk."""
        chunk, place = divmod(number, self._per_chunk)
        return names[chunk] + place.to_bytes(2)

    def _first_seen(self, kind: str, position: int) -> int:
        """The first page that a token at a position sees."""
        window = self._plan.windows[kind]
        return 0 if window is None else max(0, position - window + 1) // self._plan.size

    def open_row(self, names: Sequence[bytes], num_shared: int, reserved: int) -> Row | None:
        """A row that shares the pages of its first `num_shared` tokens and has pages for `reserved` tokens where rows
        keep all; None if there are too few."""
        if not self._has_room(names, num_shared // self._plan.chunk, reserved):
            return None
        row = Row(names)
        for kind, pool in self.pools.items():
            first = self._first_seen(kind, num_shared)
            shared = self._needed(kind, names, num_shared // self._plan.chunk)
            row.tables[kind] = [NO_PAGE] * first + [pool.share(name) for name in shared]
            if self._plan.windows[kind] is None:
                self._extend(row, kind, reserved)
        return row

    def _has_room(self, names: Sequence[bytes], num_chunks: int, reserved: int) -> bool:
        for kind, pool in self.pools.items():
            if self._plan.windows[kind] is None:
                shared = self._needed(kind, names, num_chunks)
                available = pool.num_free + pool.num_cached - sum(map(pool.is_cached, shared))
                if self._num_pages(reserved) - len(shared) > available:
                    return False
        return True

    def _num_pages(self, length: int) -> int:
        return -(-length // self._plan.size)

    def lacks(self, row: Row, end: int) -> bool:
        """Whether the pools have too few pages for a row's positions up to `end`."""
        return any(
            self._num_pages(end) - len(row.tables[kind]) > pool.num_free + pool.num_cached
            for kind, pool in self.pools.items()
            if self._plan.windows[kind] is None
        )

    def move(self, row: Row, start: int, end: int) -> None:
        """Gives a row pages for the tokens from `start` to `end`, which the next dispatch computes, and takes back
        those that none of them sees."""
        for kind, pool in self.pools.items():
            table = row.tables[kind]
            for number in range(min(self._first_seen(kind, start), len(table))):
                if table[number] != NO_PAGE:
                    pool.give_back(table[number])
                    table[number] = NO_PAGE
            self._extend(row, kind, end)

    def _extend(self, row: Row, kind: str, end: int) -> None:
        table = row.tables[kind]
        while len(table) < self._num_pages(end):
            table.append(self.pools[kind].take())

    def name_chunk(self, row: Row, start: int) -> None:
        """Names the pages of a whole chunk, whose contents the dispatches so far compute."""
        first = start // self._plan.size
        for kind, pool in self.pools.items():
            for number in range(first, first + self._per_chunk):
                pool.name(row.tables[kind][number], self._name(row.names, number))

    def forget_names(self, row: Row) -> None:
        """Shares none of a row's pages with rows that come later."""
        for kind, table in row.tables.items():
            for page in table:
                self.pools[kind].forget_name(page)  # `NO_PAGE` has none

    def close_row(self, row: Row) -> None:
        """Takes a row's pages back; of those with a name the last is the first to go, as it needs those before it."""
        for kind, table in row.tables.items():
            for page in reversed(table):
                if page != NO_PAGE:
                    self.pools[kind].give_back(page)
        row.tables.clear()


def chunk_names(prompt: Sequence[int], chunk: int, key: bytes = b"") -> list[bytes]:
    """A name for each whole chunk of a prompt: a hash of its tokens and of the name before (no two are known to be
    equal, so that nobody can be given another's pages). `key`, before the first: what contents depend on beside the
    tokens."""
    names, before = [], key
    for start in range(0, len(prompt) - chunk + 1, chunk):
        tokens = array("q", prompt[start : start + chunk]).tobytes()
        before = hashlib.blake2b(before + tokens, digest_size=32).digest()
        names.append(before)
    return names
