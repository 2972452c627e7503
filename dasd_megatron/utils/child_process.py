"""Child processes that never outlive the run they belong to: a killed run leaves nothing behind that still writes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from dasd_megatron.utils.errors import Stopped
from dasd_megatron.utils.stop_signals import handled_by

# Environment variable that names the process that started the run.
LAUNCHER = "DASD_LAUNCHER_PID"
_PR_SET_PDEATHSIG = 1
# What torchrun tells a rank; a process that starts ranks of its own must not hand on what it was told itself.
TORCHRUN_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GROUP_RANK",
)


def child_options() -> tuple[Callable[[], None], dict[str, str]]:
    """`preexec_fn` and `env` for a child that is to end with this process."""
    parent = os.getpid()

    return lambda: die_with(parent), {LAUNCHER: str(parent), **os.environ}


def die_with(parent: int, number: int = signal.SIGKILL) -> None:
    """For a child of the process `parent`: get this signal when it ends, however it ends."""
    _die_with_parent(number)
    if os.getppid() != parent:  # it ended before the request
        os._exit(1)


@contextlib.contextmanager
def forward_signals(children: Callable[[], Iterable[int]]) -> Iterator[set[int]]:
    """While open, stop signals go to the processes `children()` instead of ending this one; yields those that came.

    Raises Stopped where there is no such process yet.
    """
    signals: set[int] = set()

    def pass_on(number: int) -> None:
        signals.add(number)
        pids = list(children())
        if not pids:
            raise Stopped("stopped; the same command resumes from here")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    with handled_by(pass_on):
        yield signals


def die_with_launcher() -> None:
    """For a rank that torchrun started: end with torchrun, or at once if the run that started torchrun is gone.

    torchrun itself ends with the launcher; a rank that it started just before has not asked to end with it yet.
    """
    _die_with_parent()
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None and start_of_process(int(launcher)) is None:
        os._exit(1)


def _die_with_parent(number: int = signal.SIGKILL) -> None:
    """Asks Linux for this signal when the parent of this process ends, however it ends. No-op on other systems."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number)


def start_of_process(pid: int) -> str | None:
    """When a process of this machine began, in the system's own terms, which tells it from a later one of the same number.

    None where it has ended. Only Linux tells the time.
    """
    try:
        if not Path("/proc/self/stat").is_file():
            os.kill(pid, 0)
            return "unknown"
        # See proc(5): the state is field 3, the start field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
