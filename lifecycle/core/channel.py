"""Messages between process 0 of a job and the others while they work: JSON over TCP, in order.

JAX's key-value service is for a few words at a job's start, and a collective keeps a core busy while it waits; here a
waiting process sleeps, and a lost one is noticed when its connection closes. Process 0 listens at its own address in
the job, on a free port. Whoever connects proves by a random secret, which the job's service has, that it is of the job.
What must hold: nothing that a stranger sends is taken for a message, and nobody waits for a process that has ended.
"""

import hmac
import json
import platform
import secrets
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from lifecycle.core import distributed
from lifecycle.core.rendezvous import JobError

type Message = Mapping[str, Any]

WORD = "lifecycle/channel"  # in the job's service: address and secret
CONNECT_S = 60.0  # for all to come; they have met already
GREETING_S = 5.0  # for the first message of a connection
LONGEST_GREETING = 1024  # bytes
LONGEST = 1 << 28
LENGTH = struct.Struct(">I")
# A host that is switched off closes no connection: after 5 s without a word it is asked, and is lost after 10 s more.
OPTIONS = {"TCP_NODELAY": 1, "TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 5, "TCP_USER_TIMEOUT": 15_000}


@dataclass(frozen=True)
class Peer:
    """The process at the other end."""

    index: int
    host: str

    def __str__(self) -> str:
        return f"process {self.index} on {self.host}"


class Connection:
    """One end of a connection. `send` from any thread."""

    def __init__(self, opened: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self._socket = opened
        self._sending = threading.Lock()
        self._is_closed = False
        opened.settimeout(None)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in OPTIONS.items():
            if hasattr(socket, name):  # not all systems have all of them
                opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Message) -> None:
        """Raises `JobError` if the other process is lost."""
        try:
            with self._sending:
                self._socket.sendall(_packed(message))
        except OSError as error:
            raise self.lost(error.strerror or str(error)) from None

    def listen(self, heard: Callable[[Message], None], ended: Callable[[JobError], None]) -> threading.Thread:
        """Starts a thread that calls `heard` with each message, and `ended` once if the other end closes first."""
        thread = threading.Thread(target=self._listen, args=(heard, ended), name="channel", daemon=True)
        thread.start()
        return thread

    def _listen(self, heard: Callable[[Message], None], ended: Callable[[JobError], None]) -> None:
        why = "it has ended"
        try:
            while (message := _read(self._socket, LONGEST)) is not None:
                heard(message)
        except (OSError, ValueError) as error:
            why = str(error)
        if not self._is_closed:
            ended(self.lost(why))

    def lost(self, why: str) -> JobError:
        """The error of a job that has lost the other process."""
        return JobError(f"{self.peer} was lost: {why}", is_lost=True)

    def close(self) -> None:
        """Closes this end; the other one hears of it once it has read everything."""
        self._is_closed = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def connect() -> list[Connection]:
    """In process 0 a connection to each other process of the job, in their order; in the others the one to process 0.
    All make the same call, once. Raises `JobError` if a process does not come."""
    index, count, words = distributed.process_index(), distributed.process_count(), distributed.words_of_job()
    if index == 0:
        host, secret = distributed.coordinator_host(), secrets.token_hex(32)
        with socket.create_server((host, 0), family=_family(host), backlog=count) as server:
            words.key_value_set(WORD, json.dumps([server.getsockname()[1], platform.node(), secret]))
            return _accepted(server, count, secret)
    port, node, secret = json.loads(words.blocking_key_value_get(WORD, int(CONNECT_S * 1000)))
    opened = socket.create_connection((distributed.coordinator_host(), port), timeout=CONNECT_S)
    opened.sendall(_packed({"secret": secret, "index": index, "host": platform.node()}))
    return [Connection(opened, Peer(0, node))]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _accepted(server: socket.socket, count: int, secret: str) -> list[Connection]:
    """The connections of those who know the secret."""
    found: dict[int, Connection] = {}
    deadline = time.monotonic() + CONNECT_S
    while len(found) < count - 1:
        server.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            opened = server.accept()[0]
        except TimeoutError:
            missing = ", ".join(str(index) for index in range(1, count) if index not in found)
            raise JobError(
                f"processes that joined the job do not connect to process 0: {missing}", is_lost=True
            ) from None
        if (peer := _greeted(opened, secret)) is None or not 0 < peer.index < count or peer.index in found:
            opened.close()  # a stranger, such as a port scanner
        else:
            found[peer.index] = Connection(opened, peer)
    return [connection for _, connection in sorted(found.items())]


def _greeted(opened: socket.socket, secret: str) -> Peer | None:
    """Who has connected, if it is of the job."""
    opened.settimeout(GREETING_S)
    try:
        told = _read(opened, LONGEST_GREETING)
        if told is None or not hmac.compare_digest(str(told["secret"]).encode(), secret.encode()):
            return None
        return Peer(int(told["index"]), str(told["host"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _packed(message: Message) -> bytes:
    text = json.dumps(message, separators=(",", ":")).encode()
    return LENGTH.pack(len(text)) + text


def _read(opened: socket.socket, longest: int) -> Message | None:
    """The next message; None at the end. Raises `ValueError` for what is none."""
    if not (head := _bytes(opened, LENGTH.size)):
        return None
    (length,) = LENGTH.unpack(head)
    if length > longest:
        raise ValueError(f"a message of {length} bytes, more than {longest}")
    message = json.loads(_bytes(opened, length))
    if not isinstance(message, dict):
        raise ValueError("a message that is no object")
    return message


def _bytes(opened: socket.socket, length: int) -> bytes:
    """So many bytes, or none at the end of the stream. Raises `ValueError` for an end between."""
    data = bytearray()
    while len(data) < length:
        if not (part := opened.recv(min(length - len(data), 1 << 20))):
            if data:
                raise ValueError("it ended in the middle of a message")
            return b""
        data += part
    return bytes(data)
