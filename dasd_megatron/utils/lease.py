"""Leases on files: at most one holder, on any shared file system, whether or not its locks reach other nodes.

A lease on `NAME` is a file `NAME.1`, created exclusively, which its holder touches every few seconds. A lease whose holder died,
on this machine, or has not touched it for a minute by the clock of whoever looks, is taken over by creating `NAME.2`, and so on:
each number can be created once, so two processes never take over the same lease. Creating, and looking afterwards whether a
higher number is there, is all that is asked of the file system (Lustre with any mount option, NFS, GPFS). Where its locks do
reach, they count too: a holder that stands still, but lives, keeps its lease.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from dasd_megatron.utils.child_process import start_of_process
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import disk_error

# Seconds between touches, and after how many without one a holder on another machine counts as dead.
BEAT, DEAD = 5.0, 60.0


@dataclass(frozen=True)
class Sighting:
    """What a lease's file looked like, and when it was first seen so."""

    token: str
    touched: int
    since: float


# By path: holders that are watched, to see whether they still touch their leases.
_sightings: dict[Path, Sighting] = {}


class Lease:
    """A lease that is held, until it is closed or the process ends."""

    def __init__(self, path: Path, file: IO[str], token: str, on_loss: Callable[[], None] | None) -> None:
        self.path, self._file, self._token, self._on_loss = path, file, token, on_loss
        self._closing = threading.Event()
        self._beat = threading.Thread(target=self._beats, name=f"lease {path.name}", daemon=True)
        self._beat.start()

    def is_held(self) -> bool:
        """Whether nobody has taken it over while this process stood still."""
        higher = self.path.with_name(f"{_base(self.path)}.{_number(self.path) + 1}")
        try:
            return not higher.exists() and _token_in(self.path) == self._token
        except FileNotFoundError:
            return False
        except OSError:  # a file system that doesn't answer, for a moment, says nothing about it
            return True

    def close(self) -> None:
        """Gives it back."""
        self._closing.set()
        if self.is_held():
            self.path.unlink(missing_ok=True)
        self._file.close()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _beats(self) -> None:
        while not self._closing.wait(BEAT):
            with contextlib.suppress(OSError, ValueError):  # a moment without the file system; or closed just now
                os.utime(self._file.fileno())
            if self._on_loss is not None and not self._closing.is_set() and not self.is_held():
                self._on_loss()
                return


def try_lease(name: Path, on_loss: Callable[[], None] | None = None) -> Lease | None:
    """The lease on `name`; None if another process holds it.

    `on_loss` is called, from a thread, when another process has taken it over.
    Raises UserError where the folder can't be written.
    """
    try:
        name.parent.mkdir(parents=True, exist_ok=True)
        below = max(_files(name), key=_number, default=None)
        seen = None
        if below is not None and (seen := _abandoned(below)) is None:
            return None
        path = name.with_name(f"{name.name}.{_number(below) + 1 if below else 1}")
        token = secrets.token_hex(8)
        file = _created(path, {"token": token, **_identity()})
    except OSError as error:
        raise disk_error(name, error) from error
    if file is None:
        return None
    # Whoever created a higher number has it; and what was taken over must still be what was seen.
    highest = max(_files(name), key=_number, default=None)
    if highest != path or (below is not None and seen is not None and _token(below) != seen.token):
        path.unlink(missing_ok=True)
        file.close()
        return None
    if below is not None:
        below.unlink(missing_ok=True)
        _sightings.pop(below, None)
    return Lease(path, file, token, on_loss)


@contextlib.contextmanager
def hold(name: Path, busy: str, patience: float = 10.0) -> Iterator[None]:
    """Holds the lease on `name`. Waits `patience` seconds for a holder that is just dying, then raises UserError(busy).

    The error, and a line a minute while it waits longer, name the holder. A process that loses it ends.
    """

    def lost() -> None:
        print(f"error: {name}: this process stood still, and {holder(name)} took over; it ends here", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)

    start = told = time.monotonic()
    while (lease := try_lease(name, lost)) is None:
        now = time.monotonic()
        if now - start > patience:
            raise UserError(f"{busy} ({name}: held by {holder(name)})")
        if now - told > 60:
            told = now
            print(f"waiting for {name}: held by {holder(name)}", file=sys.stderr, flush=True)
        time.sleep(0.1)
    with lease:
        yield


def holder(name: Path) -> str:
    """Who holds the lease on `name`, as it has written itself."""
    for path in sorted(_files(name), key=_number, reverse=True):
        content = _content(path)
        if "pid" in content:
            job = f", Slurm job {content['job']}" if content["job"] else ""
            return f"process {content['pid']} on {content['host']}{job}, since {content['since']}"
    return "another process"


def _created(path: Path, content: dict[str, object]) -> IO[str] | None:
    """A new file with this content, locked; None where somebody was faster. Leaves nothing where the disk is full."""
    try:
        file = path.open("x")
    except FileExistsError:
        return None
    try:
        _lock(file)
        file.write(json.dumps(content) + "\n")
        file.flush()
        os.fsync(file.fileno())
    except OSError:
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # what couldn't be written is tried again
            file.close()
        raise
    return file


def _lock(file: IO[str]) -> None:
    """The file system's own lock, where it has one."""
    for _ in range(100):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # somebody is looking at it
            time.sleep(0.01)
        except OSError:
            return
        else:
            return


def _abandoned(path: Path) -> Sighting | None:
    """What was seen of a lease whose holder is dead; None while it lives."""
    try:
        with path.open() as file:  # opened again: NFS looks at the server then
            touched = os.fstat(file.fileno()).st_mtime_ns
            content = _parsed(file.read())
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            except OSError:  # a file system without locks
                pass
    except FileNotFoundError:  # given back
        content, touched = {}, 0
    token = str(content.get("token", ""))
    seen = _sightings.get(path)
    if seen is None or (seen.token, seen.touched) != (token, touched):
        seen = _sightings[path] = Sighting(token, touched, time.monotonic())
    if content.get("machine") == _machine():
        return None if start_of_process(int(str(content["pid"]))) == content["started"] else seen
    return seen if time.monotonic() - seen.since > DEAD else None


def _identity() -> dict[str, object]:
    return {
        "machine": _machine(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": start_of_process(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


@cache
def _machine() -> str:
    """Names this machine and its process ids: a container may have others."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _files(name: Path) -> list[Path]:
    start = f"{name.name}."
    return [path for path in name.parent.iterdir() if path.name.startswith(start) and _base(path) == name.name]


def _base(path: Path) -> str:
    """The lease's name; empty where the file is none of a lease."""
    base, _, number = path.name.rpartition(".")
    return base if number.isdigit() else ""


def _number(path: Path) -> int:
    return int(path.name.rpartition(".")[2])


def _token(path: Path) -> str:
    return str(_content(path).get("token", ""))


def _token_in(path: Path) -> str:
    """Raises OSError where the file can't be read."""
    return str(_parsed(path.read_text()).get("token", ""))


def _content(path: Path) -> dict[str, object]:
    try:
        return _parsed(path.read_text())
    except OSError:
        return {}


def _parsed(text: str) -> dict[str, object]:
    """What a lease's file says; nothing where it isn't one, or is half written."""
    try:
        content = json.loads(text or "{}")
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
