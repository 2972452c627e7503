"""Durable file writes: aside, synced, renamed, so that a file is either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from dasd_megatron.errors import UserError

# System errors that are the user's to mend: no space, no permission, read-only.
REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write` with a file beside `path` and renames it to `path` once it is on disk.

    Raises UserError where the disk is full or the folder can't be written; nothing is left behind then.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        sync(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def disk_error(path: Path, error: OSError) -> UserError:
    """The message for a write to `path` that the system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; free some space and run the same command again")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"{path}: can't be written ({error.strerror}); choose another folder or make it writable")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(
            f"{path}: a file is in the way of a folder ({error.strerror}); move it, or choose another folder"
        )
    return UserError(f"{path}: can't be written: {error}")


def underlying(error: BaseException) -> OSError | None:
    """The system's refusal that a library reports as an error of its own."""
    reason: BaseException | None = error
    while reason is not None and not isinstance(reason, OSError):
        reason = reason.__cause__ or reason.__context__
    return reason


def write_json(path: Path, content: Any) -> None:
    """`content` as indented JSON, keys in their order."""
    data = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
    write_atomically(path, lambda file: file.write(data))


def sync(path: Path) -> None:
    """Makes a file's content, or the renames inside a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
