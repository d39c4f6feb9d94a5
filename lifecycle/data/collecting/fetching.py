"""A list of addresses into a folder of pages: politely, and going on where a killed run was.

Each server has one request at a time, with a pause after it; several servers are asked at once. Every address is asked
for only if the server's robots.txt allows it, and so is each one that it leads to. What must hold: each address of the
list has one outcome, and a page that was fetched is not asked for again, but with `again`, if it has changed.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from urllib.parse import urldefrag, urljoin

from lifecycle.core.files import alone
from lifecycle.data.collecting.archive import Archive, Entry
from lifecycle.data.collecting.requests import Answer, FetchError, Manners, ask, server_of
from lifecycle.data.collecting.robots import Robots
from lifecycle.data.reading.warc import FORMAT_OF_TYPE
from lifecycle.data.user_lists import list_lines

PASSING = (429, 500, 502, 503, 504)
MOVED = (301, 302, 303, 307, 308)
TYPES = frozenset(FORMAT_OF_TYPE)


@dataclass
class Fetched:
    """What became of a list: addresses, how many are there twice, pages (also of runs before), those that a server says
    are unchanged, those that robots.txt files refuse, and the others by reason."""

    addresses: int = 0
    doubled: int = 0
    fetched: int = 0
    unchanged: int = 0
    refused: int = 0
    failed: Counter[str] = field(default_factory=Counter)


def read_list(path: Path) -> list[str]:
    """The addresses of a file, one a line; empty lines and those that begin with # are left out."""
    lines = (line.strip() for line in list_lines(path))
    return [line for line in lines if line and not line.startswith("#")]


def fetch_list(
    urls: Iterable[str], folder: Path, manners: Manners, again: bool = False,
    tell: Callable[[str, Entry], None] = lambda url, entry: None,
) -> Fetched:  # fmt: skip
    """Fetches the pages of a list into a folder; `again` asks for those that are there, too, and keeps new versions
    beside the old ones. Another process that fetches into the folder is waited for."""
    counted, queues = Fetched(), dict[str, list[str]]()
    with alone(folder / ".lock"), closing(Archive(folder, manners.agent)) as archive:
        run = _Run(archive, manners, tell)
        for url in urls:
            counted.addresses += 1
            _queue(url.partition("#")[0], queues, run)
        listed = dict.fromkeys(url for queue in queues.values() for url in queue)
        waiting = [
            [url for url in dict.fromkeys(queue) if again or not _is_there(archive.entries.get(url))]
            for queue in queues.values()
        ]
        run.all(waiting)
        counted.doubled = counted.addresses - len(listed)
        for url in listed:
            entry = archive.entries[url]
            counted.fetched += entry.outcome == "fetched"
            counted.refused += entry.outcome == "refused"
            if entry.outcome == "failed":
                counted.failed[entry.reason] += 1
        counted.unchanged = run.num_unchanged
    assert len(listed) == counted.fetched + counted.refused + counted.failed.total()
    return counted


def _queue(url: str, queues: dict[str, list[str]], run: "_Run") -> None:
    try:
        queues.setdefault(server_of(url), []).append(url)
    except FetchError as error:
        if url not in queues.setdefault("", []):
            run.failed(url, error)
        queues[""].append(url)


def _is_there(entry: Entry | None) -> bool:
    return entry is not None and (entry.outcome == "fetched" or entry.reason == "no_address")


class _Run:
    """A list while it is fetched."""

    def __init__(self, archive: Archive, manners: Manners, tell: Callable[[str, Entry], None]) -> None:
        self._archive, self._manners, self._tell = archive, manners, tell
        self._gates, self._lock, self._stop = dict[str, _Gate](), Lock(), Event()
        self._robots = Robots(self._robots_file)
        self.num_unchanged = 0

    def all(self, queues: Iterable[list[str]]) -> None:
        """Works on the queues of servers, some at a time."""
        with ThreadPoolExecutor(self._manners.servers) as pool:
            jobs = [pool.submit(self._work, queue) for queue in queues if queue]
            try:
                for job in jobs:
                    job.result()
            finally:
                self._stop.set()

    def failed(self, url: str, error: FetchError) -> None:
        """Notes an address without a page."""
        self._note(Entry(url, "failed", error.reason, str(error)))

    def _work(self, queue: list[str]) -> None:
        for url in queue:
            if self._stop.is_set():
                return
            try:
                self._fetch(url)
            except FetchError as error:
                if error.reason == "robots":
                    self._note(Entry(url, "refused", error.reason, str(error)))
                else:
                    self.failed(url, error)

    def _note(self, entry: Entry) -> None:
        known = self._archive.entries.get(entry.url)
        if known is None or known.outcome != "fetched":  # a page that is here stays, whatever the server says now
            self._archive.add(entry)
        self._tell(entry.url, entry)

    def _fetch(self, url: str) -> None:
        known = self._archive.entries.get(url)
        conditions: dict[str, str] = {}
        if known is not None and known.etag:
            conditions = {"If-None-Match": known.etag}
        elif known is not None and known.modified:
            conditions = {"If-Modified-Since": known.modified}
        answer, at = self._followed(url, conditions, self._allowed)
        if answer.status == 304 and conditions:
            with self._lock:
                self.num_unchanged += 1
            return
        if answer.status != 200:
            raise FetchError(f"status_{answer.status}", f"status {answer.status} {answer.reason}")
        self._archive.add_page(url, at, answer)
        self._tell(url, self._archive.entries[url])

    def _followed(
        self, url: str, conditions: Mapping[str, str], check: Callable[[str], None]
    ) -> tuple[Answer, str]:  # fmt: skip
        """The answer at the end of redirections, and its address; each address is checked before it is asked for."""
        for _ in range(self._manners.redirects + 1):
            check(url)
            answer = self._asked(url, conditions, None if check is _unchecked else TYPES)
            if answer.status not in MOVED:
                return answer, url
            to = answer.header("Location")
            if not to:
                raise FetchError("redirect", f"status {answer.status} without a Location")
            try:
                url = urldefrag(urljoin(url, to)).url
            except ValueError as error:
                raise FetchError("redirect", f"status {answer.status} to no address: {error}") from None
        raise FetchError("redirect", f"more than {self._manners.redirects} redirections")

    def _robots_file(self, url: str) -> Answer:
        return self._followed(url, {}, _unchecked)[0]

    def _allowed(self, url: str) -> None:
        server = server_of(url)
        rules = self._robots.of(server)
        if rules.delay_s > self._manners.longest_pause_s:
            raise FetchError("robots", f"robots.txt asks for {rules.delay_s:g} s between requests")
        self._gate(server).delay_s = max(self._manners.delay_s, rules.delay_s)
        if not rules.allow(url):
            raise FetchError("robots", rules.why)

    def _asked(self, url: str, conditions: Mapping[str, str], types: frozenset[str] | None) -> Answer:
        """An answer; a request that may have one later is repeated."""
        gate = self._gate(server_of(url))
        for pause in (*self._manners.pauses_s, None):
            try:
                with gate.passed(self._stop):
                    answer = ask(url, self._manners, types, conditions)
                if answer.status not in PASSING or pause is None:
                    return answer
                asked = answer.header("Retry-After")
                pause = max(pause, float(asked) if asked.isdecimal() else 0.0)
                if pause > self._manners.longest_pause_s:
                    return answer
            except FetchError as error:
                if not error.is_passing or pause is None:
                    raise
            gate.rest(pause)
        raise AssertionError("the last pause is None")

    def _gate(self, server: str) -> "_Gate":
        with self._lock:
            return self._gates.setdefault(server, _Gate(self._manners.delay_s))


def _unchecked(url: str) -> None:
    """robots.txt itself may always be asked for."""
    server_of(url)


class _Gate:
    """Lets one request at a time through to a server, and the next one after a pause."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s, self._lock, self._free_at = delay_s, Lock(), 0.0

    @contextmanager
    def passed(self, stop: Event) -> Generator[None]:
        """A request is made in the block."""
        with self._lock:
            if stop.wait(max(0.0, self._free_at - time.monotonic())):
                raise FetchError("stopped", "the run was ended", is_passing=False)
            try:
                yield
            finally:
                self._free_at = time.monotonic() + self.delay_s

    def rest(self, pause_s: float) -> None:
        """Lets none through for so long."""
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() + pause_s)
