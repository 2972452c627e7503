"""Runs a command whose own children don't end with it, so that all of them end with the process that asked for it.

python -m dasd_megatron.utils.process_group COMMAND ...
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Never

import psutil

from dasd_megatron.utils.child_process import die_with

THIS = "dasd_megatron.utils.process_group"
# Seconds in which a killed process gives back what it holds.
PATIENCE = 10.0


def start_group(command: Sequence[str], environment: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts the command and what it starts as a group, which ends with this process however that ends, and when the command
    does."""
    parent = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-m", THIS, *command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: die_with(parent, signal.SIGTERM),
    )


def exit_at_once(code: int = 0) -> Never:
    """Ends this process without taking anything down in order, and what it started: once it is gone, nothing holds a GPU.

    Workers of an engine on several GPUs notice by themselves that they are alone, but seconds later.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    started = [process for process in psutil.Process().children(recursive=True) if not _is_resource_tracker(process)]
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(started, timeout=PATIENCE)
    os._exit(code)


def _is_resource_tracker(process: psutil.Process) -> bool:
    """Python's own helper, which removes shared memory that nobody has removed, and then ends by itself."""
    try:
        return "multiprocessing.resource_tracker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def main() -> Never:
    """Entry point of the group's first process, which stays small."""

    def end(number: int, frame: object) -> Never:
        os.killpg(0, signal.SIGKILL)
        os._exit(1)

    signal.signal(signal.SIGTERM, end)
    code = subprocess.call(sys.argv[1:])
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.killpg(0, signal.SIGTERM)  # what it left
    os._exit(code if code >= 0 else 1)


if __name__ == "__main__":
    main()
