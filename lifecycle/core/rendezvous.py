"""The processes of a job meet before JAX starts: who is missing, or runs something else, is named within a minute.

JAX's own start waits for five minutes and then aborts without a name, and processes that run other code or another
config hang in their first collective. Here process 0 listens at the coordinator's address, each other one sends it a
line of JSON (index, host, facts, its error if it has one), and all get the same answer: nothing, or what is wrong.
"""

import errno
import json
import resource
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from types import MappingProxyType

MEET_S = 50.0  # for all to come; nodes of one job start within seconds of each other
ANSWER_S = 5.0  # for one line, of a process that is there
RETRY_S = 0.2
LONGEST_LINE = 1 << 16  # bytes
MOST_NAMED = 8  # processes in one message
SPARE_FILES = 256  # that a process has open besides its connections
NOBODY: Mapping[int, str] = MappingProxyType({})


class JobError(ValueError):
    """The processes of a job cannot work together. `is_told` if process 0 has the same message, and says it; `is_lost`
    if some are missing and nothing else is wrong, so that a new start may help."""

    def __init__(self, message: str, is_told: bool = False, is_lost: bool = False) -> None:
        super().__init__(message)
        self.is_told, self.is_lost = is_told, is_lost


@dataclass(frozen=True)
class Member:
    """A process of the job; `facts` must be the same in all of them, and `error` is why it cannot go on."""

    index: int
    host: str
    facts: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    def __str__(self) -> str:
        return f"process {self.index} on {self.host}"


def meet(address: str, count: int, own: Member, wait_s: float = MEET_S, hosts: Mapping[int, str] = NOBODY) -> str:
    """Returns in all processes once all `count` have come to `address` (`HOST:PORT`, process 0's) with the same facts
    and no error: the same address as a number, which JAX needs not look up.

    `hosts` are the processes whose host is known beforehand. Raises `JobError`, in all that came, naming the processes
    that are missing, differ or have an error.
    """
    host, _, port = address.rpartition(":")
    where, deadline = (host.strip("[]"), int(port)), time.monotonic() + wait_s
    if own.index:
        return _report(where, own, deadline, wait_s)
    return _receive(where, count, own, hosts, deadline)


def _receive(where: tuple[str, int], count: int, own: Member, hosts: Mapping[int, str], deadline: float) -> str:
    """Process 0's part: collects the members and tells them the answer."""
    members = {0: own}
    _allow_files(count + SPARE_FILES)
    with ExitStack() as opened:
        server = opened.enter_context(_listen(where, count, deadline))
        address = _written(server.getsockname())
        connections: list[socket.socket] = []
        problem, is_lost = "", False
        while len(members) < count and not problem and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection = opened.enter_context(server.accept()[0])
            except TimeoutError:
                break
            if (member := _read_member(connection)) is None or not 0 < member.index < count:
                continue  # a stranger, such as a port scanner
            connections.append(connection)
            if (twin := members.setdefault(member.index, member)) is not member:
                problem = f"{member} and {twin} have the same index: two jobs use {address}"
        if not problem:
            errors, absent = _errors(members, count), _missing(members, count, hosts, address)
            problem = "; ".join(filter(None, (errors, absent))) or _differing(members)
            is_lost = bool(absent and not errors)
        _tell(connections, (problem, is_lost))
    if problem:
        raise JobError(problem, is_lost=is_lost)
    return address


def _listen(where: tuple[str, int], count: int, deadline: float) -> socket.socket:
    """A listening socket; waits for the host's name, which a new pod gets late, and for a port that an attempt before
    has not left yet."""
    while True:
        try:
            family, _, _, _, found = socket.getaddrinfo(*where, type=socket.SOCK_STREAM)[0]
            return socket.create_server(found[:2], family=family, backlog=count)
        except OSError as error:
            is_early = isinstance(error, socket.gaierror) or error.errno == errno.EADDRINUSE
            if not is_early or time.monotonic() >= deadline:
                raise JobError(
                    f"process 0 cannot listen at {where[0]}:{where[1]}: {error.strerror}; it must be an address of its "
                    "own host, and free (LIFECYCLE_COORDINATOR=HOST:PORT sets another)"
                ) from None
            time.sleep(RETRY_S)


def _allow_files(number: int) -> None:
    """Lets this process hold as many connections as the job has processes, up to the system's limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < number:
        allowed = number if hard == resource.RLIM_INFINITY else min(number, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _written(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tell(connections: list[socket.socket], answer: tuple[str, bool]) -> None:
    """Sends the answer and waits until the others have closed, so that the port is free for JAX at once."""
    for connection in connections:
        connection.settimeout(ANSWER_S)
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
            connection.recv(1)
        except OSError:  # it has ended meanwhile, which JAX's start notices
            continue


def _missing(members: Mapping[int, Member], count: int, hosts: Mapping[int, str], address: str) -> str:
    absent = [f"{index} on {hosts[index]}" if index in hosts else str(index) for index in range(count)
              if index not in members]  # fmt: skip
    if not absent:
        return ""
    here = _few([str(member) for _, member in sorted(members.items())])
    return f"{len(absent)} of {count} processes did not come to {address}: {_few(absent)}; here are {here}"


def _errors(members: Mapping[int, Member], count: int) -> str:
    """The errors of all members, each once; one that all processes have needs no names."""
    who: dict[str, list[str]] = {}
    for _, member in sorted(members.items()):
        if member.error:
            who.setdefault(member.error, []).append(str(member))
    if [len(names) for names in who.values()] == [count]:
        return next(iter(who))
    return "; ".join(f"{_few(names)}: {error}" for error, names in list(who.items())[:MOST_NAMED])


def _few(names: list[str]) -> str:
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _differing(members: Mapping[int, Member]) -> str:
    first = members[0]
    for _, member in sorted(members.items()):
        for name in sorted({*first.facts, *member.facts}):
            theirs, ours = member.facts.get(name), first.facts.get(name)
            if theirs != ours:
                return f"{member} has {name} {theirs}, {first} has {ours}; all processes need the same"
    return ""


def _report(where: tuple[str, int], own: Member, deadline: float, wait_s: float) -> str:
    """The part of the others: reports to process 0 and takes its answer."""
    written = _written(where)
    while True:
        try:
            with socket.create_connection(where, timeout=ANSWER_S) as connection:
                address = _written(connection.getpeername())
                connection.sendall(json.dumps(asdict(own)).encode() + b"\n")
                connection.settimeout(wait_s + 2 * ANSWER_S)  # process 0's own wait, which may have begun just now
                line = _read_line(connection)
                problem, is_lost = (
                    json.loads(line) if line else (f"process 0 at {written} ended before the job began", True)
                )
            break
        except (OSError, ValueError) as error:  # not there yet, or another program listens there
            if time.monotonic() >= deadline:
                raise JobError(
                    f"process 0 does not answer at {written} ({error}): is it running, and can this host reach it?",
                    is_lost=True,
                ) from None
            time.sleep(RETRY_S)
    if problem:
        raise JobError(problem, is_told=bool(line), is_lost=is_lost)
    return address


def _read_member(connection: socket.socket) -> Member | None:
    connection.settimeout(ANSWER_S)
    try:
        told = json.loads(_read_line(connection))
        facts = {str(name): str(value) for name, value in told["facts"].items()}
        return Member(int(told["index"]), str(told["host"]), facts, str(told["error"]))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
        if not (part := connection.recv(4096)):
            break
        line += part
    return line
