"""An artifact: a folder of Parquet shards or a checkpoint, `manifest.json`, and last of all `COMPLETE`.

Nothing else in the project writes data files. A shard is whole or absent, so a killed step resumes from its last shard;
`COMPLETE` holds the hash of the manifest, which holds the hash of every shard.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import disk_error, write_atomically, write_json
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

    def shards(self, table: str) -> list[dict[str, Any]]:
        """Manifest entries (name, bytes, sha256, rows) of a table's shards, in order."""
        return [shard for shard in self.manifest["shards"] if shard["name"].rpartition("-")[0] == table]

    def read_shard(self, table: str, index: int) -> pa.Table:
        """One shard, checked against the manifest's size and hash."""
        return self._read(self.shards(table)[index])

    def _read(self, shard: Mapping[str, Any], columns: list[str] | None = None) -> pa.Table:
        path = self._checked(shard)
        try:
            # A plain file handle: memory-mapping or dataset discovery would add a partition column.
            content = pq.ParquetFile(path).read(columns)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path}: damaged ({error}); {self._remedy()}") from None
        return content

    def file(self, name: str) -> Path:
        """Path of a file that is no shard, checked against the manifest."""
        entry = next((entry for entry in self.manifest["files"] if entry["name"] == name), None)
        if entry is None:
            raise UserError(f"{self.path}: holds no file {name!r}; {self._remedy()}")
        return self._checked(entry)

    def _checked(self, entry: Mapping[str, Any]) -> Path:
        """Path of a file whose size and hash are the manifest's."""
        path = self.path / str(entry["name"])
        try:
            size = path.stat().st_size
        except OSError:
            raise UserError(f"{path}: the file is missing; {self._remedy()}") from None
        if size != entry["bytes"]:
            raise UserError(
                f"{path}: truncated or changed ({size} bytes, the manifest says {entry['bytes']}); {self._remedy()}"
            )
        if hash_file(path) != entry["sha256"]:
            raise UserError(f"{path}: damaged (its hash is not the manifest's); {self._remedy()}")
        return path

    def read(self, table: str) -> pa.Table:
        """A whole table, shards in order. Raises UserError if the artifact has no such table."""
        shards = self.shards(table)
        if not shards:
            raise UserError(f"{self.path}: holds no table {table!r}; {self._remedy()}")
        return pa.concat_tables([self._read(shard) for shard in shards])

    def rows(self, table: str, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """Rows of a table as dictionaries, in order, one shard in memory at a time."""
        for shard in self.shards(table):
            yield from self._read(shard, columns).to_pylist()


class ArtifactWriter:
    """An artifact being made. `description` (config, inputs, versions) opens its manifest."""

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        self.path = path
        self.description = dict(description)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(path, error) from error

    @property
    def claims(self) -> Path:
        """Folder of the leases on shards that processes are at work on."""
        return self.path / ".claims"

    def clear_leftovers(self) -> None:
        """Removes what a killed process left half-written. Only for the one process that holds the step's lock."""
        for leftover in list(self.path.rglob(".*.tmp")):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)

    def has_shard(self, table: str, index: int) -> bool:
        """Whether this shard is already on disk, whole."""
        return (self.path / shard_name(table, index)).is_file()

    def write_shard(self, table: str, index: int, content: pa.Table) -> None:
        """Writes one shard. The same rows always give the same bytes."""
        path = self.path / shard_name(table, index)
        write_atomically(path, lambda file: pq.write_table(content, file, compression="zstd"))

    def tables(self, table: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The shards of a table that are on disk so far, in order."""
        for path in sorted(self.path.glob(f"{table}-*.parquet")):
            yield pq.ParquetFile(path).read(columns)

    def finish(self, **facts: Any) -> None:
        """Writes the manifest with `facts` (counts, dropped rows by reason, metrics) and every shard's hash, then COMPLETE."""
        shutil.rmtree(self.claims, ignore_errors=True)
        shards, files = [], []
        for path in sorted(path for path in self.path.rglob("*") if path.is_file()):
            name = str(path.relative_to(self.path))
            if name in (MANIFEST, COMPLETE) or name.startswith("."):
                continue
            entry = {"name": name, "bytes": path.stat().st_size, "sha256": hash_file(path)}
            if path.suffix == ".parquet":
                shards.append({**entry, "rows": pq.read_metadata(path).num_rows})
            else:
                files.append(entry)
        write_json(self.path / MANIFEST, {**self.description, **facts, "shards": shards, "files": files})
        digest = hash_file(self.path / MANIFEST)
        write_atomically(self.path / COMPLETE, lambda file: file.write(f"{digest}\n".encode()))
