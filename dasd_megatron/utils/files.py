"""Durable file writes: into a temporary file, synced, renamed, so that a file is either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from dasd_megatron.utils.errors import UserError

# System errors that are the user's to fix: no space, no permission, read-only.
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
