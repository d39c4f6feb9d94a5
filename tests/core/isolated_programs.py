"""Programs that misbehave, for the tests of isolated processes."""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lifecycle.core.isolation.confine import Limits, confine


def answer(item: Any, limits: Limits) -> Any:
    """Doubles numbers; a word is a way to fail."""
    del limits
    match item:
        case "loop":
            while True:
                pass
        case "sleep":
            time.sleep(1000)
        case "leave":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "memory":
            return len(bytearray(1 << 40))
        case "raise":
            raise ValueError("no")
        case "flood":
            return "x" * (1 << 22)
        case "daemon":
            if os.fork() == 0:
                os.setsid()
                time.sleep(1000)
            return "started"
        case "environment":
            return dict(os.environ)
        case "rank":
            return Path("/proc/self/oom_score_adj").read_text(encoding="ascii").strip()
    return item * 2


ATTEMPTS: dict[str, Any] = {
    "read a file of the system's": lambda: Path("/etc/passwd").read_text(encoding="utf-8"),
    "read the environment of another process": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "list a home": lambda: os.listdir(Path("~").expanduser().parent),
    "write a file": lambda: Path("/tmp/written-by-isolated").write_text("x", encoding="utf-8"),
    "change rights": lambda: Path("/etc/hostname").chmod(0o777),
    "make a folder": lambda: Path("folder").mkdir(),
    "leave a link": lambda: Path("link").symlink_to("/etc/passwd"),
    "write much": lambda: Path("much").write_bytes(bytes(1 << 20)),
    "fork": os.fork,
    "run a program": lambda: subprocess.run(["true"], check=False),
    "open a socket": socket.socket,
    "send to a name": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b"x", "/dev/log"),
    "kill the parent": lambda: os.kill(os.getppid(), signal.SIGKILL),
    "kill all": lambda: os.kill(-1, signal.SIGKILL),
    "let a descriptor signal another": lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid()),
    "outlive the parent": lambda: _failed(ctypes.CDLL(None, use_errno=True).prctl(1, 0, 0, 0, 0)),
    "trace the parent": lambda: _failed(ctypes.CDLL(None, use_errno=True).ptrace(16, os.getppid(), 0, 0)),
    "hold uncounted memory": lambda: os.memfd_create("x"),
    "enter a namespace": lambda: _failed(ctypes.CDLL(None, use_errno=True).unshare(0x10000000)),
}
ALLOWED: dict[str, Any] = {
    "write in the scratch folder": lambda: Path("file").write_text("x", encoding="utf-8"),
    "start a thread": lambda: threading.Thread(target=print).start(),
    "import what is not imported": lambda: __import__("graphlib").__name__,
    "signal itself": lambda: os.kill(os.getpid(), 0),
    "use a pair of sockets": lambda: _sent(*socket.socketpair()),
}


def answer_fresh(read: Callable[[], Any], limits: Limits) -> Any:
    """As `answer`."""
    return answer(read(), limits)


def attempt(read: Callable[[], list[str]], limits: Limits) -> dict[str, str]:
    """What becomes of each attempt in a closed process: empty, or the error's name."""
    names = read()
    confine(limits, Path.cwd())
    found = {}
    for name in names:
        try:
            {**ATTEMPTS, **ALLOWED}[name]()
            found[name] = ""
        except (OSError, MemoryError) as error:
            found[name] = type(error).__name__
    return found


def _failed(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _sent(one: socket.socket, other: socket.socket) -> bytes:
    one.send(b"x")
    return other.recv(1)
