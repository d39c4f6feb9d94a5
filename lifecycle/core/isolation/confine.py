"""Closes a process off before it runs code that nobody has read, without privileges or libraries (Linux).

| what | by |
|---|---|
| files | Landlock (kernel 5.13): reads Python and the system's libraries, writes only in its scratch folder |
| network, other processes, new processes, programs, mounts | a seccomp filter; threads are allowed |
| memory, CPU time, open files, a file's size | resource limits, hard |
| root's rights | capabilities are dropped, and no program gives them back |

It is no virtual machine: a fault in the kernel is a way out, `stat` tells which files exist, and the kernel's own
memory is bounded through time and address space only. The zygote counts threads and the scratch folder's bytes ten
times a second. Run models from untrusted sources in a container or a virtual machine as well.
"""

import ctypes
import errno
import os
import resource
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lifecycle.core.isolation.seccomp import ARCHITECTURES, install_filter

NO_NEW_PRIVS, SET_DUMPABLE, DROP_BOUND, PARENT_DEATH_SIGNAL = 38, 4, 24, 1  # prctl's
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # Landlock's calls, the same on every architecture
EXECUTE, WRITE, READ_FILE, READ_FOLDER, REMOVE_FILE, MAKE_FILE, TRUNCATE = (1 << bit for bit in (0, 1, 2, 3, 5, 8, 14))
FIRST_RIGHTS, REFER, TRUNCATES, IOCTL = (1 << 13) - 1, 1 << 13, 1 << 14, 1 << 15  # by the kernel's Landlock version
SYSTEM = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/etc/mime.types")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


@dataclass(frozen=True)
class Limits:
    """What one piece of work may use: CPU and wall seconds, bytes of memory, of output, and of files that it writes."""

    cpu_s: int = 5
    wall_s: float = 20.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 1 << 20
    file_bytes: int = 16 << 20
    files: int = 64


class ConfineError(OSError):
    """This process cannot be closed off: nothing must be run in it."""


def unavailable() -> str:
    """Why a process cannot be closed off on this machine; empty if it can."""
    if sys.platform != "linux" or os.uname().machine not in ARCHITECTURES:
        return "it needs Linux on x86-64 or 64-bit ARM"
    if _landlock_version() < 1:
        return "the kernel has no Landlock (5.13, in the list of `lsm=`)"
    return ""


def confine(limits: Limits, scratch: Path) -> None:
    """Closes this process off, for good; `scratch` is the only folder where it may write files.

    Import first what the work needs from elsewhere than Python's own folders. Raises `ConfineError` where this is
    not possible: nothing must then be run.
    """
    if problem := unavailable():
        raise ConfineError(errno.ENOSYS, f"code cannot be closed off: {problem}")
    limit_resources(limits)
    _drop_rights()
    _restrict_files(scratch)
    install_filter()


def limit_resources(limits: Limits) -> None:
    """Limits of this process, where they are lower than those that it has; none can be raised again."""
    wanted = {
        resource.RLIMIT_AS: limits.memory_bytes, resource.RLIMIT_CPU: limits.cpu_s + 1, resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: limits.file_bytes, resource.RLIMIT_NOFILE: limits.files, resource.RLIMIT_MEMLOCK: 0,
    }  # fmt: skip
    if sys.platform != "linux":
        del wanted[resource.RLIMIT_AS]  # other systems count what they only reserve
    for name, value in wanted.items():
        hard = resource.getrlimit(name)[1]
        lowest = value if hard == resource.RLIM_INFINITY else min(value, hard)
        soft = min(lowest, limits.cpu_s) if name == resource.RLIMIT_CPU else lowest  # first a signal that says why
        resource.setrlimit(name, (soft, lowest))


def _drop_rights() -> None:
    for capability in range(64):
        if control_process(DROP_BOUND, capability) != 0:
            break  # the last one, or a user who has none to drop
    header = struct.pack("<II", 0x20080522, 0)  # the third version, of this process
    _checked(ctypes.CDLL(None, use_errno=True).capset(header, bytes(24)), "capset")
    _checked(control_process(NO_NEW_PRIVS, 1), "no_new_privs")
    _checked(control_process(SET_DUMPABLE, 0), "dumpable")


def control_process(what: int, value: int) -> int:
    """Linux's prctl(2) of this process; elsewhere nothing."""
    return ctypes.CDLL(None, use_errno=True).prctl(what, value, 0, 0, 0) if sys.platform == "linux" else 0


def _restrict_files(scratch: Path) -> None:
    version = _landlock_version()
    handled = FIRST_RIGHTS | (REFER if version >= 2 else 0) | (TRUNCATES if version >= 3 else 0)
    handled |= IOCTL if version >= 5 else 0
    read = EXECUTE | READ_FILE | READ_FOLDER  # to execute is to map a library too
    write = (WRITE | READ_FILE | READ_FOLDER | REMOVE_FILE | MAKE_FILE | TRUNCATE) & handled
    libc = ctypes.CDLL(None, use_errno=True)
    attributes = struct.pack("<Q", handled)
    ruleset = _checked(libc.syscall(CREATE_RULESET, attributes, len(attributes), 0), "Landlock")
    for path in _readable():
        _allow(libc, ruleset, path, read)
    for device in DEVICES:
        _allow(libc, ruleset, device, READ_FILE | WRITE)
    _allow(libc, ruleset, str(scratch), write)
    _checked(libc.syscall(RESTRICT_SELF, ruleset, 0), "Landlock")
    os.close(ruleset)


def _readable() -> Iterable[str]:
    """Where Python and the libraries of the system are; never the whole file system, wherever Python lives."""
    places = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, str(Path(sys.executable).resolve())}
    return sorted(({*SYSTEM} | places) - {"/"})


def _allow(libc: ctypes.CDLL, ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        of_files = EXECUTE | WRITE | READ_FILE | TRUNCATE  # a file has no rights of folders
        rights = rights if Path(path).is_dir() else rights & of_files
        rule = struct.pack("<Qi", rights, opened)
        _checked(libc.syscall(ADD_RULE, ruleset, 1, rule, 0), f"Landlock, {path}")
    finally:
        os.close(opened)


def _landlock_version() -> int:
    return ctypes.CDLL(None, use_errno=True).syscall(CREATE_RULESET, None, 0, 1) if sys.platform == "linux" else 0


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise ConfineError(number, f"code cannot be closed off: {what}: {os.strerror(number)}")
    return result
