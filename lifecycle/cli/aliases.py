"""The models of a server by the registry's aliases, which it follows while it runs."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

from rich.console import Console

from lifecycle.core.periodic import repeated
from lifecycle.ops.registry import Registry, Version
from lifecycle.serving.choices import Served
from lifecycle.stages.names import PRODUCTION

FOLLOW_S = 1.0  # how often the registry is polled


class AliasedModels(Mapping[str, Served]):
    """Models by alias, production first, and by short hash; follows a moved alias within a second or two.

    A version stays loaded after its alias has moved on, so moving back is immediate. One that cannot be loaded is
    reported, and the alias keeps serving its old version.
    """

    def __init__(self, registry: Registry, start: Callable[[Version], Served], console: Console) -> None:
        self._registry, self._start, self._console = registry, start, console
        self._aliases: dict[str, str] = {}
        self._by_hash: dict[str, Served] = {}
        self._table: dict[str, Served] = {}
        self._told = ""  # the newest error of the registry: one that lasts is told once
        self._refresh()

    def __getitem__(self, name: str) -> Served:
        return self._table[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)

    def following(self) -> AbstractContextManager[None]:
        """Polls the registry every second, in a thread, while the block runs."""
        return repeated(self._follow, FOLLOW_S, "aliases")

    def _follow(self) -> None:
        try:
            self._refresh()
            self._told = ""
        except ValueError as error:  # from the registry
            if str(error) != self._told:
                self._report(error)
            self._told = str(error)

    def _refresh(self) -> None:
        aliases = self._registry.aliases()
        if aliases == self._aliases:
            return
        self._aliases = aliases  # before the versions are loaded: one that fails is reported once
        for version in set(aliases.values()) - self._by_hash.keys():
            self._load(version)
        names = sorted(aliases, key=lambda alias: (alias != PRODUCTION, alias))
        loaded = [alias for alias in names if aliases[alias] in self._by_hash]
        kept = {alias: self._table[alias] for alias in names if alias in self._table}
        table = kept | {alias: self._by_hash[aliases[alias]] for alias in loaded}
        table |= {self._registry.resolve(version).short: served for version, served in self._by_hash.items()}
        self._table = table  # replaced atomically: requests see the old table or the new one
        for alias in loaded:
            self._console.print(f"{alias:<12} {aliases[alias][:12]}", markup=False, highlight=False)

    def _load(self, version: str) -> None:
        """Starts an engine. Once models are served, a version that cannot be loaded is reported and left out."""
        try:
            self._by_hash[version] = self._start(self._registry.resolve(version))
        except (ValueError, RuntimeError, OSError) as error:  # from the registry, a bundle, or a device without room
            if not self._table:
                raise
            self._report(error)

    def _report(self, error: Exception) -> None:
        self._console.print(f"alias ignored: {error}", markup=False, highlight=False)
