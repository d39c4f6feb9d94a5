"""Whose documents may be used: licences that are allowed, and documents that are to be forgotten.

A list of what is to be forgotten is a text file with an entry on each line: the id of a document, the hash of its
content (the column `content`, in hexadecimal digits), an address, or the name of a host, which stands for all addresses
of it and of the hosts below it. Lines that begin with `#` are comments. The rules apply when documents are selected, so
a longer list reads no source again.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from lifecycle.core.config import ConfigError
from lifecycle.core.fetched import local_file
from lifecycle.core.web_address import shown
from lifecycle.data.config import RightsConfig
from lifecycle.data.measures.license_expressions import license_place
from lifecycle.data.measures.scripts import UNDETERMINED
from lifecycle.data.measures.steps import Failure, Rule
from lifecycle.data.personal.places import masked_places
from lifecycle.data.user_lists import list_lines, shown_entry
from lifecycle.data.web_names import address_hash, canonical, host_of, hosts_above

_DIGITS = re.compile(r"[0-9a-fA-F]{32}")
_HOST = re.compile(r"(?:[\w-]+\.)+[\w-]+")


class Forgotten(NamedTuple):
    """The entries of a list."""

    hashes: frozenset[str]  # ids and contents
    addresses: frozenset[str]
    address_hashes: frozenset[bytes]
    hosts: frozenset[str]


@dataclass(frozen=True)
class AllowedLicenses:
    """A rule: documents under another licence fail. Of a choice (`MIT OR GPL-2.0-only`, as SPDX writes it) one licence
    has to be allowed, of several that all apply (`MIT AND CC-BY-4.0`) each."""

    allowed: tuple[str, ...]

    def __call__(self, documents: pa.Table) -> Iterator[Failure]:
        """The documents whose licence is not allowed."""
        verdicts = {licence: self._allows(licence) for licence in documents["license"].unique().to_pylist()}
        for ordinal, licence in zip(*documents.select(["ordinal", "license"]).to_pydict().values(), strict=True):
            if not verdicts[licence]:
                yield Failure(ordinal, "license", f"{licence} is not in data.rights.licenses")

    def _allows(self, expression: str) -> bool:
        return license_place(expression, self.allowed) < len(self.allowed)


@dataclass(frozen=True)
class Forget:
    """A rule: documents of a source (None: of all) that a list names fail."""

    place: str
    source: str | None = None

    def __call__(self, documents: pa.Table) -> Iterator[Failure]:
        """The documents that are to be forgotten."""
        forgotten = read_list(self.place)
        columns = documents.select(["ordinal", "source", "id", "content", "address", "url"]).to_pydict()
        for ordinal, source, name, content, address, url in zip(*columns.values(), strict=True):
            if self.source not in (None, source):
                continue
            if found := _entry_of(forgotten, name, content.hex(), address, url):
                yield Failure(ordinal, "forgotten", f"{Path(self.place).name} has {found}")


def rights_rules(config: RightsConfig) -> tuple[Rule, ...]:
    """The rules of the settings."""
    of_sources = ((place, source) for source, places in config.opt_outs.items() for place in places)
    lists = (*((place, None) for place in config.forget), *of_sources)
    licences = (AllowedLicenses(config.licenses),) if config.licenses else ()
    return (*licences, *(Forget(place, source) for place, source in lists))


def read_list(place: str) -> Forgotten:
    """The entries of a list; raises `ConfigError` for a file that is not there, and for a line that is none."""
    path = local_file(place)
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{shown(place)}: {error.strerror}; correct data.rights") from None
    return _read(path, (found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=16)
def _read(path: Path, stat: tuple[int, int]) -> Forgotten:
    del stat
    hashes: set[str] = set()
    given: list[str] = []  # addresses as they are written
    hosts: set[str] = set()
    for number, line in enumerate(list_lines(path), 1):
        entry = line.strip()
        if not entry or entry.startswith("#"):
            continue
        if _DIGITS.fullmatch(entry):
            hashes.add(entry.lower())
        elif "://" in entry:
            given.append(entry)
        elif _HOST.fullmatch(entry):
            hosts.add(host_of(f"//{entry}"))
        else:
            raise ConfigError(
                f"{path}:{number}: {shown_entry(entry)} is no id, hash, address with :// or name of a host"
            )
    return Forgotten(
        frozenset(hashes), frozenset(map(canonical, given)), frozenset(address_hashes(given)), frozenset(hosts)
    )


def address_hashes(addresses: Sequence[str]) -> Iterator[bytes]:
    """The hashes of some addresses, and of what is left of them once they are masked: what a model has written of a
    document has that."""
    yield from map(address_hash, addresses)
    masked = masked_places("url", addresses, [UNDETERMINED] * len(addresses))
    yield from (address_hash(address.text) for address in masked.values())


def _entry_of(forgotten: Forgotten, name: str, content: str, address: bytes | None, url: str | None) -> str | None:
    """What of a document is on the list, for its reason; `url` may be masked, all of it but its host."""
    if name in forgotten.hashes:
        return f"its id {name}"
    if content in forgotten.hashes:
        return f"its content {content}"
    if url is None:
        return None
    if address in forgotten.address_hashes:
        return f"its address {url}"
    return next((f"its host {host}" for host in hosts_above(host_of(url)) if host in forgotten.hosts), None)
