"""A seccomp filter: which calls of the kernel a process may still make (Linux's seccomp(2), classic BPF).

The filter refuses a list, so that libraries of numbers go on to work, and every call that is newer than the list. What
is refused fails with EPERM, as for a user without the right; nothing is killed. The numbers are those of the kernel's
`asm/unistd_64.h` (x86-64) and `asm-generic/unistd.h` (64-bit ARM). It needs no privileges and no library.
"""

import ctypes
import errno
import os
import struct
from dataclasses import dataclass

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
NEWEST_KNOWN = 462  # mseal

# By name: the numbers on x86-64 and on ARM, where an older call may not exist.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # starts a process or another program
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # reaches a network, or a service on this machine
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    # reads, stops or moves another process
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "kcmp": (312, 272), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # changes what Landlock does not guard
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "open_by_handle_at": (304, 265), "mknod": (133, None), "mknodat": (259, 33),
    # holds memory that no limit counts, or outlives the process
    "memfd_create": (319, 279), "memfd_secret": (447, None), "shmget": (29, 194), "shmat": (30, 196),
    "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    # changes namespaces, mounts, the kernel or the machine
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89), "swapon": (167, 224), "swapoff": (168, 225),
    "reboot": (169, 142), "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266), "syslog": (103, 116),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "vhangup": (153, 58),
    "personality": (135, 92), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    # has been a way round filters
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0), "io_submit": (209, 2),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "fanotify_init": (300, 262),
    "seccomp": (317, 277),
}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A call that depends on an argument: allowed only with one of `values`, or, `is_refusing`, only without."""

    numbers: tuple[int, int]
    argument: int
    values: tuple[int, ...]
    is_refusing: bool = False


def rules(pid: int) -> list[Rule]:
    """The calls of process `pid` that depend on their arguments."""
    own = (pid,)
    name, mapping_name = 15, 0x53564D41  # PR_SET_NAME, PR_SET_VMA: not the signal that comes with the parent's death
    set_owner, set_signal, set_owner_ex = 8, 10, 15  # fcntl's: a descriptor could signal any process of the user
    return [
        Rule((62, 129), 0, own),  # kill
        Rule((234, 131), 0, own),  # tgkill
        Rule((302, 261), 0, (0, pid)),  # prlimit64
        Rule((44, 206), 4, (0,)),  # sendto, by a socket pair's own end only
        Rule((157, 167), 0, (name, mapping_name)),  # prctl
        Rule((72, 25), 1, (set_owner, set_signal, set_owner_ex), is_refusing=True),  # fcntl
        Rule((16, 29), 1, (0x8901, 0x8902), is_refusing=True),  # ioctl: FIOSETOWN, SIOCSPGRP
    ]


CLONE, CLONE3, CLONE_THREAD = (56, 220), 435, 0x10000
ALLOW, REFUSE, ABSENT = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
LOAD, EQUAL, GREATER, ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in seccomp_data; a little-endian argument's low half is first

type Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def program(machine: str, pid: int) -> list[Instruction]:
    """The filter of process `pid` on `machine`, a key of `ARCHITECTURES`."""
    column = list(ARCHITECTURES).index(machine)
    code: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (RETURN, 0, 0, REFUSE),
    ]
    code += [(LOAD, 0, 0, NUMBER), (GREATER, 0, 1, NEWEST_KNOWN), (RETURN, 0, 0, ABSENT)]
    code += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, ABSENT)]  # its flags are out of sight; C libraries go back to clone
    for number in (numbers[column] for numbers in REFUSED.values()):
        code += [] if number is None else [(EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE)]
    code += _guarded(
        CLONE[column], [(LOAD, 0, 0, FIRST_ARGUMENT), (ANY_BIT, 1, 0, CLONE_THREAD), (RETURN, 0, 0, REFUSE)]
    )
    for rule in rules(pid):
        code += _guarded(rule.numbers[column], _argument_rule(rule))
    return [*code, (RETURN, 0, 0, ALLOW)]


def _argument_rule(rule: Rule) -> list[Instruction]:
    """Instructions that refuse, or go on to what follows: for zero and small numbers both halves are compared."""
    low, high = FIRST_ARGUMENT + 8 * rule.argument, FIRST_ARGUMENT + 8 * rule.argument + 4
    if rule.is_refusing:  # the kernel reads these commands as 32 bits
        found = [step for value in rule.values for step in ((EQUAL, 0, 1, value), (RETURN, 0, 0, REFUSE))]
        return [(LOAD, 0, 0, low), *found]
    count = len(rule.values)
    found = [(EQUAL, count - place, 0, value) for place, value in enumerate(rule.values)]
    return [
        (LOAD, 0, 0, high),
        (EQUAL, 1, 0, 0),
        (RETURN, 0, 0, REFUSE),
        (LOAD, 0, 0, low),
        *found,
        (RETURN, 0, 0, REFUSE),
    ]


def _guarded(number: int, body: list[Instruction]) -> list[Instruction]:
    """`body` for one call only; ends with an allowance."""
    return [(EQUAL, 0, len(body) + 1, number), *body, (RETURN, 0, 0, ALLOW)]


def install_filter() -> None:
    """Puts the filter on this process, and on its threads to come; it cannot be taken off.

    `no_new_privs` must be set. Raises `OSError` where the kernel or the architecture has none.
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {machine}")
    packed = b"".join(struct.pack("<HBBI", *step) for step in program(machine, os.getpid()))
    code = ctypes.create_string_buffer(packed, len(packed))
    head = ctypes.create_string_buffer(struct.pack("@HP", len(packed) // 8, ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(22, 2, ctypes.c_void_p(ctypes.addressof(head)), 0, 0) != 0:  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
