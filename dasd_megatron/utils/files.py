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


class AtomicFile:
    """A file beside `path`, open for writing, that gets its name once it is whole.

    Raises UserError where the disk is full or the folder can't be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file: IO[bytes] = self._temporary.open("wb")
        except OSError as error:
            raise disk_error(path, error) from error

    def commit(self) -> None:
        """Makes it durable, and renames it."""
        try:
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            self._temporary.rename(self.path)
            sync(self.path.parent)
        except OSError as error:
            raise disk_error(self.path, error) from error

    def discard(self) -> None:
        """Removes what was not committed."""
        with contextlib.suppress(OSError):  # what can't be flushed to a full disk isn't wanted
            self.file.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Calls `write` with a file beside `path` and renames it to `path` once it is on disk.

    Raises UserError where the disk is full or the folder can't be written; nothing is left behind then.
    """
    made = AtomicFile(path)
    try:
        write(made.file)
        made.commit()
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        made.discard()


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
