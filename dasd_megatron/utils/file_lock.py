"""Locks on files that end with the process that holds them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import disk_error


def try_lock(path: Path) -> IO[str] | None:
    """An exclusive lock on `path`, held until the file is closed or the process ends; None if another holds it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise UserError(
            f"{path}: this file system can't lock files ({error}); choose a folder on one that can"
        ) from None
    return file


@contextlib.contextmanager
def lock(path: Path, busy: str, patience: float = 10.0) -> Iterator[None]:
    """Holds the lock on `path`. Waits `patience` seconds for a holder that is just dying, then raises UserError(busy).

    The error, and a line a minute while it waits longer, name the holder.
    """
    start = told = time.monotonic()
    while (file := try_lock(path)) is None:
        now = time.monotonic()
        if now - start > patience:
            raise UserError(f"{busy} ({path}: {_holder(path)})")
        if now - told > 60:
            told = now
            print(f"waiting for {path}: {_holder(path)}", file=sys.stderr, flush=True)
        time.sleep(0.1)
    with file:
        file.truncate(0)
        job = f", Slurm job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"held by process {os.getpid()} on {socket.gethostname()}{job}, since {since}\n")
        file.flush()
        yield


def _holder(path: Path) -> str:
    """What the holder of a lock has written about itself."""
    try:
        return path.read_text().strip() or "held by another process"
    except OSError:
        return "held by another process"
