"""A seccomp filter: the system calls that no solution of a problem needs, refused with EPERM.

The second layer: namespaces already keep a program from files, processes and the network of the machine; without these calls it
can't start processes, nor reach parts of the kernel in which errors are found. Format: seccomp(2), linux/filter.h.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence

# By machine: the architecture's number (linux/audit.h), and the numbers of the calls: asm/unistd_64.h, asm-generic/unistd.h.
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_SOCKET = {"x86_64": 41, "aarch64": 198}
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None),
    "vfork": (58, None),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "open_by_handle_at": (304, 265),
    "memfd_create": (319, 279),  # memory that no limit counts
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
}
_EPERM, _ENOSYS = 1, 38
_CLONE_THREAD = 0x10000
_AF_UNIX = 1
# Instructions: load a word of seccomp_data; jump if equal, if at least, if bits are set; return.
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
# Places in seccomp_data: number, architecture, the low half of the first argument.
_NUMBER, _ARCHITECTURE, _ARGUMENT = 0, 4, 16
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000


def seccomp_filter(machine: str = platform.machine()) -> bytes | None:
    """The filter's program for `bwrap --seccomp`; None for a machine whose numbers aren't known here."""
    if machine not in _ARCHITECTURES:
        return None
    column = list(_ARCHITECTURES).index(machine)
    numbers = sorted(number for calls in _REFUSED.values() if (number := calls[column]) is not None)
    program = [
        _op(_LOAD, _ARCHITECTURE),
        _op(_EQUAL, _ARCHITECTURES[machine], 1, 0),
        _op(_RETURN, _KILL),
        _op(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":  # the same calls under other numbers
        program += [_op(_AT_LEAST, _X32_BIT, 0, 1), _op(_RETURN, _ERROR | _ENOSYS)]
    # C libraries fall back to clone, whose flags a filter can read.
    program += [_op(_EQUAL, _CLONE3, 0, 1), _op(_RETURN, _ERROR | _ENOSYS)]
    program += _unless(_CLONE[machine], _op(_ANY_BIT, _CLONE_THREAD, 0, 1))
    program += _unless(_SOCKET[machine], _op(_EQUAL, _AF_UNIX, 0, 1))
    for number in numbers:
        program += [_op(_EQUAL, number, 0, 1), _op(_RETURN, _ERROR | _EPERM)]
    return b"".join([*program, _op(_RETURN, _ALLOW)])


def _unless(number: int, allowed: bytes) -> Sequence[bytes]:
    """Refuses the call of this number where its first argument doesn't pass the test `allowed`."""
    return [
        _op(_EQUAL, number, 0, 4),
        _op(_LOAD, _ARGUMENT),
        allowed,
        _op(_RETURN, _ALLOW),
        _op(_RETURN, _ERROR | _EPERM),
    ]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
