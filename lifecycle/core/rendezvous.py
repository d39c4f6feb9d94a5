"""The processes of a job meet before JAX starts: who is missing, or runs something else, is named within a minute.

JAX's own start waits for five minutes and then aborts without a name, and processes that run other code or another
config hang in their first collective. Here process 0 listens at the coordinator's address, each other one sends it a
line of JSON (index, host, facts), and all get the same answer: nothing, or what is wrong.
"""

import json
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass

MEET_S = 50.0  # for all to come; nodes of one job start within seconds of each other
ANSWER_S = 5.0  # for one line, of a process that is there
RETRY_S = 0.2
LONGEST_LINE = 1 << 16  # bytes


class JobError(ValueError):
    """The processes of a job cannot work together."""


@dataclass(frozen=True)
class Member:
    """A process of the job; `facts` must be the same in all of them."""

    index: int
    host: str
    facts: Mapping[str, str]

    def __str__(self) -> str:
        return f"process {self.index} on {self.host}"


def meet(address: str, count: int, own: Member, wait_s: float = MEET_S) -> None:
    """Returns in all processes once all `count` have come to `address` (`HOST:PORT`, process 0's) with the same facts.

    Raises `JobError`, in all that came, naming the processes that are missing or differ.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + wait_s
    if own.index:
        problem = _report((host.strip("[]"), int(port)), own, deadline)
    else:
        problem = _receive((host.strip("[]"), int(port)), count, own, deadline)
    if problem:
        raise JobError(problem)


def _receive(address: tuple[str, int], count: int, own: Member, deadline: float) -> str:
    """Process 0's part: collects the members, tells them the answer, and returns it."""
    members = {0: own}
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with ExitStack() as opened:
        try:
            server = opened.enter_context(socket.create_server(address, family=family, backlog=count))
        except OSError as error:
            return f"process 0 cannot listen at {address[0]}:{address[1]}: {error.strerror}; it must be its own address"
        connections: list[socket.socket] = []
        while len(members) < count and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                connection = opened.enter_context(server.accept()[0])
            except TimeoutError:
                break
            if (member := _read_member(connection)) is None or not 0 < member.index < count:
                continue  # a stranger, such as a port scanner
            connections.append(connection)
            if (twin := members.setdefault(member.index, member)) is not member:
                return _tell(connections, f"{member} and {twin} have the same index: two jobs use this address")
        return _tell(connections, _missing(members, count) or _differing(members))


def _tell(connections: list[socket.socket], answer: str) -> str:
    """Sends the answer and waits until the others have closed, so that the port is free for JAX at once."""
    for connection in connections:
        connection.settimeout(ANSWER_S)
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
            connection.recv(1)
        except OSError:  # it has ended meanwhile, which JAX's start notices
            continue
    return answer


def _missing(members: Mapping[int, Member], count: int) -> str:
    absent = [str(index) for index in range(count) if index not in members]
    if not absent:
        return ""
    here = ", ".join(str(member) for _, member in sorted(members.items()))
    return f"{len(absent)} of {count} processes did not come: {', '.join(absent)}; here are {here}"


def _differing(members: Mapping[int, Member]) -> str:
    first = members[0]
    for _, member in sorted(members.items()):
        for name in sorted({*first.facts, *member.facts}):
            theirs, ours = member.facts.get(name), first.facts.get(name)
            if theirs != ours:
                return f"{member} has {name} {theirs}, {first} has {ours}; all processes need the same"
    return ""


def _report(address: tuple[str, int], own: Member, deadline: float) -> str:
    """The part of the others: reports to process 0 and returns its answer."""
    where = f"{address[0]}:{address[1]}"
    while True:
        try:
            with socket.create_connection(address, timeout=ANSWER_S) as connection:
                connection.sendall(json.dumps(asdict(own)).encode() + b"\n")
                connection.settimeout(max(deadline - time.monotonic(), 0) + 2 * ANSWER_S)
                line = _read_line(connection)
                return json.loads(line) if line else f"process 0 at {where} ended before the job began"
        except (OSError, ValueError) as error:  # not there yet, or another program listens there
            if time.monotonic() >= deadline:
                return f"process 0 does not answer at {where} ({error}): is it running, and can this host reach it?"
            time.sleep(RETRY_S)


def _read_member(connection: socket.socket) -> Member | None:
    connection.settimeout(ANSWER_S)
    try:
        told = json.loads(_read_line(connection))
        return Member(int(told["index"]), str(told["host"]), {str(k): str(v) for k, v in told["facts"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _read_line(connection: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and len(line) < LONGEST_LINE:
        if not (part := connection.recv(4096)):
            break
        line += part
    return line
