"""What a process and its descendants use, by /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICK, _PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """Of a process and its descendants, and of those of them that have ended.

    Attributes:
        cpu_seconds: user and system time.
        memory: bytes in RAM of those that live.
        tasks: living threads.
        busy: whether one of them runs, waits for a processor, or for a disk.
    """

    cpu_seconds: float
    memory: int
    tasks: int
    busy: bool


def usage(pid: int) -> Usage:
    """Of the process `pid` and its descendants."""
    ticks, pages, tasks, busy = 0, 0, 0, False
    for process in _tree(pid):
        try:
            # See proc(5): the state is the first field after the name; utime, stime, cutime and cstime are 12th to 15th,
            # the resident pages 22nd.
            fields = _fields(process / "stat")
            ticks += sum(map(int, fields[11:15]))
            pages += int(fields[21])
            for task in (process / "task").iterdir():
                tasks += 1
                busy |= _fields(task / "stat")[0] in "RD"
        except OSError:  # it has ended
            continue
    return Usage(ticks / _TICK, pages * _PAGE, tasks, busy)


def _tree(pid: int) -> Iterator[Path]:
    """/proc's folders of a process and its descendants."""
    waiting = [pid]
    while waiting:
        process = Path("/proc", str(waiting.pop()))
        yield process
        try:
            for task in (process / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue


def _fields(stat: Path) -> list[str]:
    return stat.read_text().rpartition(")")[2].split()
