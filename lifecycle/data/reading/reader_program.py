"""What a program does that `reader_process.py` starts: it answers what it is asked, with limits on its memory and time.

On standard input there is a length and so many bytes, on standard output an answer likewise, a JSON object; what is too
much for the limits ends the process.
"""

import json
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

LENGTH = struct.Struct("<Q")
MEMORY = 2 << 30  # bytes of address space
CPU_S = 60  # of an answer


def serve(read: Callable[[bytes], dict[str, Any]], cpu_s: int = CPU_S) -> None:
    """Answers by `read` until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while head := sys.stdin.buffer.read(LENGTH.size):
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + cpu_s
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        answer = json.dumps(read(sys.stdin.buffer.read(*LENGTH.unpack(head)))).encode()
        sys.stdout.buffer.write(LENGTH.pack(len(answer)) + answer)
        sys.stdout.buffer.flush()
