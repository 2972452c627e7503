"""A finished artifact: a folder of Parquet shards or a checkpoint, `manifest.json`, and last of all `COMPLETE`.

`COMPLETE` holds the hash of the manifest, which holds the hash of every file. A table may extend one of another artifact: then
its shards hold only the columns that its step made and, in the column `row`, which rows of the other's shard of the same number
they belong to (all of them where there is no such column). Readers see one table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dasd_megatron.artifacts.shard_file import hash_footer, open_shard_file
from dasd_megatron.artifacts.shard_reader import ROW, ShardReader
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.hashing import hash_file

MANIFEST = "manifest.json"
COMPLETE = "COMPLETE"


def is_complete(path: Path) -> bool:
    """Whether the artifact at `path` is finished."""
    return (path / COMPLETE).is_file()


def shard_name(table: str, index: int) -> str:
    """File name of one shard of one table."""
    return f"{table}-{index:05d}.parquet"


class Artifact:
    """A finished artifact, to read. Raises UserError if it isn't finished or was damaged since."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not is_complete(path):
            raise UserError(f"{path}: not finished (no {COMPLETE}); run the step that makes it first")
        try:
            content = (path / MANIFEST).read_bytes()
            digest = (path / COMPLETE).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path / MANIFEST}: can't be read ({error}); {self._remedy()}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise UserError(f"{path / MANIFEST}: changed since it was written; {self._remedy()}")
        self.manifest: dict[str, Any] = json.loads(content)

    def _remedy(self) -> str:
        return f"delete the folder {self.path} and run again: the step makes it again"

    @cached_property
    def _shards(self) -> dict[str, list[dict[str, Any]]]:
        shards: dict[str, list[dict[str, Any]]] = {}
        for shard in self.manifest["shards"]:
            shards.setdefault(shard["name"].rpartition("-")[0], []).append(shard)
        return shards

    def shards(self, table: str) -> list[dict[str, Any]]:
        """Manifest entries (name, bytes, sha256, rows) of a table's shards, in order."""
        return self._shards.get(table, [])

    def row_count(self, table: str) -> int:
        """Rows of a table."""
        return sum(shard["rows"] for shard in self.shards(table))

    def reader(self, table: str, shard: int, columns: Sequence[str] | None = None) -> ShardReader:
        """Reads one shard. Raises UserError for a damaged file, and where the artifact has no such table or column."""
        if not self.shards(table):
            raise UserError(f"{self.path}: holds no table {table!r}; {self._remedy()}")
        entry = self.shards(table)[shard]
        file, base = self._open(entry), self._base(table)
        columns = self.columns(table) if columns is None else columns
        others = [name for name in columns if name not in file.schema_arrow.names]

        def damaged(error: Exception) -> UserError:
            return self._damaged(self.path / entry["name"], error)

        if not others:
            return ShardReader(file, columns, None, damaged)
        if base is None:
            raise UserError(f"{self.path}: the table {table!r} has no column {others[0]!r}; {self._remedy()}")
        return ShardReader(file, columns, base.reader(table, shard, others), damaged)

    def columns(self, table: str) -> list[str]:
        """Names of a table's columns, with those of the table that it extends."""
        own = [name for name in self._open(self.shards(table)[0]).schema_arrow.names if name != ROW]
        base = self._base(table)
        return own if base is None else [*own, *(name for name in base.columns(table) if name not in own)]

    def batches(self, table: str, columns: Sequence[str] | None = None, shard: int | None = None) -> Iterator[pa.Table]:
        """Rows of a table, or of one shard of it, in order, a row group in memory at a time; at least one table.

        Raises UserError as `reader` does.
        """
        for number in range(max(len(self.shards(table)), 1)) if shard is None else [shard]:
            yield from self.reader(table, number, columns).batches()

    def rows(self, table: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of a table as dictionaries, in order, a row group in memory at a time."""
        for batch in self.batches(table, columns) if self.shards(table) else ():
            yield from batch.to_pylist()

    def read(self, table: str, columns: Sequence[str] | None = None, shard: int | None = None) -> pa.Table:
        """A whole table, or shard, in memory. Raises UserError as `reader` does."""
        return pa.concat_tables(self.batches(table, columns, shard))

    def file(self, name: str) -> Path:
        """Path of a file that is no shard, checked against the manifest."""
        entry = next((entry for entry in self.manifest["files"] if entry["name"] == name), None)
        if entry is None:
            raise UserError(f"{self.path}: holds no file {name!r}; {self._remedy()}")
        path = self._sized(entry)
        if hash_file(path) != entry["sha256"]:
            raise UserError(f"{path}: damaged (its hash is not the manifest's); {self._remedy()}")
        return path

    def _base(self, table: str) -> Artifact | None:
        name = self.manifest.get("extends", {}).get(table)
        return None if name is None else _opened(self.path.parent / name)

    def _open(self, entry: Mapping[str, Any]) -> pq.ParquetFile:
        """A shard's file, its size and footer those of the manifest; pages are checked as they are read."""
        path = self._sized(entry)
        try:
            if hash_footer(path) != entry["footer_sha256"]:
                raise OSError("its footer is not the manifest's")
            return open_shard_file(path)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(path, error) from None

    def _damaged(self, path: Path, error: Exception) -> UserError:
        return UserError(f"{path}: damaged ({error}); {self._remedy()}")

    def _sized(self, entry: Mapping[str, Any]) -> Path:
        """Path of a file whose size is the manifest's."""
        path = self.path / str(entry["name"])
        try:
            size = path.stat().st_size
        except OSError:
            raise UserError(f"{path}: the file is missing; {self._remedy()}") from None
        if size != entry["bytes"]:
            raise UserError(
                f"{path}: truncated or changed ({size} bytes, the manifest says {entry['bytes']}); {self._remedy()}"
            )
        return path


@cache
def _opened(path: Path) -> Artifact:
    return Artifact(path)
