"""Rows of shards that aren't whole yet, written as they come: a killed process loses none that it had.

Each process appends to journals of its own, one a shard; whoever does the shard reads all of that shard's. A record is a few rows
with a checksum: one that was cut off, by a kill or a lost node, counts as absent, and with it what comes after it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import pyarrow as pa

from dasd_megatron.utils.files import disk_error

# Before the rows of a record: their CRC-32 and their bytes.
_HEADER = struct.Struct("<IQ")
# Of a row: its number in the shard.
NUMBER = "number"
# Seconds between syncs: what a lost node, not a killed process, loses at most.
SYNC_INTERVAL = 5.0


class Journal:
    """One process's journal of one shard. The file is there once there is a row."""

    def __init__(self, folder: Path, shard: int, schema: pa.Schema) -> None:
        self._path = folder / f"{shard:05d}.{secrets.token_hex(6)}"
        self._schema = _with_numbers(schema)
        self._file: IO[bytes] | None = None
        self._synced = time.monotonic()

    def append(self, numbers: Sequence[int], rows: pa.Table) -> pa.Table:
        """Adds rows, each with its number in the shard; returns them as a reader will see them.

        Raises UserError where the disk refuses them.
        """
        content = rows.append_column(NUMBER, pa.array(numbers, pa.int32())).cast(self._schema).combine_chunks()
        body = content.to_batches()[0].serialize().to_pybytes()
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._path.open("xb")
            self._file.write(_HEADER.pack(zlib.crc32(body), len(body)) + body)
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_INTERVAL:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        except OSError as error:
            raise disk_error(self._path, error) from error
        return _rows(body, self._schema)

    def close(self) -> None:
        """Writes nothing more; the rows stay."""
        if self._file is not None:
            self._file.close()


def read_journals(folder: Path, shard: int, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of a shard that its journals have, with their numbers; a row may be in several of them."""
    for path in sorted(folder.glob(f"{shard:05d}.*")):
        with path.open("rb") as file:
            for _, read in _records(file):
                if (body := read()) is None:
                    break
                yield _rows(body, _with_numbers(schema))


def remove_journals(folder: Path, shard: int) -> None:
    """Those of a shard that is whole now."""
    for path in folder.glob(f"{shard:05d}.*"):
        path.unlink(missing_ok=True)


class JournalFollower:
    """Reads what all processes append to a step's journals, from afar: what it doesn't get to see is no loss."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, _with_numbers(schema)
        self._places: dict[Path, int] = {}

    def records(self) -> Iterator[Callable[[], pa.Table]]:
        """The records that are new since the last call; what reads one is to be called before the next is asked for."""
        for path in sorted(self._folder.glob("[0-9]*.*")):
            with contextlib.suppress(OSError), path.open("rb") as file:  # removed: its shard is whole
                yield from self._of(path, file)

    def _of(self, path: Path, file: IO[bytes]) -> Iterator[Callable[[], pa.Table]]:
        for end, read in _records(file, self._places.get(path, 0)):
            self._places[path] = end
            yield partial(self._rows, read)

    def _rows(self, read: Callable[[], bytes | None]) -> pa.Table:
        body = read()
        return self._schema.empty_table() if body is None else _rows(body, self._schema)


def _with_numbers(schema: pa.Schema) -> pa.Schema:
    return schema.append(pa.field(NUMBER, pa.int32()))


def _records(file: IO[bytes], place: int = 0) -> Iterator[tuple[int, Callable[[], bytes | None]]]:
    """Of each record from `place` on that isn't cut off: where it ends, and what reads it; None for one that is damaged."""
    size = os.fstat(file.fileno()).st_size
    while place + _HEADER.size <= size:
        file.seek(place)
        checksum, length = _HEADER.unpack(file.read(_HEADER.size))
        start, place = place + _HEADER.size, place + _HEADER.size + length
        if not length or place > size:  # zeros: what a lost node may leave
            return
        yield place, partial(_body, file, start, length, checksum)


def _body(file: IO[bytes], start: int, length: int, checksum: int) -> bytes | None:
    file.seek(start)
    body = file.read(length)
    return body if zlib.crc32(body) == checksum else None


def _rows(body: bytes, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(body), schema)])
