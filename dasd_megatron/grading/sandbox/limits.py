"""What a program in the sandbox may use."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024**2


@dataclass(frozen=True)
class ProgramLimits:
    """Of one program.

    Attributes:
        cpu_seconds: of all its threads together, so that a busy machine changes no verdict. LiveCodeBench's 6 seconds.
        idle_seconds: in which it neither runs nor waits for a processor: asleep, or waiting for input that never comes.
        memory: bytes of its address space. LiveCodeBench's 4 GiB.
        disk, files: bytes, and number of files, in its /tmp.
        processes: threads included.
        output: bytes that it may print.
    """

    cpu_seconds: float = 6.0
    idle_seconds: float = 6.0
    memory: int = 4096 * MIB
    disk: int = 64 * MIB
    files: int = 10_000
    processes: int = 64
    output: int = 16 * MIB
