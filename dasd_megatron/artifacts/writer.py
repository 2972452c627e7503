"""An artifact being made. Nothing else in the project writes data files.

A shard is whole or absent, so a killed step resumes from its last shard.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dasd_megatron.artifacts.artifact import COMPLETE, MANIFEST, shard_name
from dasd_megatron.artifacts.shard_file import GROUP_BYTES, ShardFileWriter, hash_footer, open_shard_file
from dasd_megatron.utils.files import AtomicFile, disk_error, underlying, write_atomically, write_json
from dasd_megatron.utils.hashing import hash_file

# Files that are hashed at a time.
HASHING = 8


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

    @property
    def journals(self) -> Path:
        """Folder of the rows of shards that aren't whole yet (journal.py)."""
        return self.path / ".journals"

    def clear_leftovers(self) -> None:
        """Removes what a killed process left half-written. Only for the one process that holds the step's lease."""
        for leftover in list(self.path.rglob(".*.tmp")):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink(missing_ok=True)

    def has_shard(self, table: str, index: int) -> bool:
        """Whether this shard is already on disk, whole."""
        return (self.path / shard_name(table, index)).is_file()

    def shard_numbers(self, table: str) -> set[int]:
        """Which shards of a table are on disk, whole."""
        return {int(path.stem.rpartition("-")[2]) for path in self.path.glob(f"{table}-*.parquet")}

    def write_shard(self, table: str, index: int, content: pa.Table) -> None:
        """Writes one shard of one table. The same rows always give the same bytes."""
        with self.shard(index, table) as shard:
            shard.write({table: content})

    def shard(self, index: int, last: str, group_bytes: int = GROUP_BYTES) -> ShardWriter:
        """The tables of one shard, to be written a piece at a time; that of the table `last` gets its name after the others."""
        return ShardWriter(self.path, index, last, group_bytes)

    def tables(self, table: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The shards of a table that are on disk so far, in order."""
        for path in sorted(self.path.glob(f"{table}-*.parquet")):
            yield open_shard_file(path).read(columns)

    def finish(self, **facts: Any) -> None:
        """Writes the manifest with `facts` (counts, dropped rows by reason, metrics) and every shard's hash, then COMPLETE."""
        for folder in (self.claims, self.journals):
            shutil.rmtree(folder, ignore_errors=True)
        paths = [
            path
            for path in sorted(path for path in self.path.rglob("*") if path.is_file())
            if path not in (self.path / MANIFEST, self.path / COMPLETE) and not self._name(path).startswith(".")
        ]
        with ThreadPoolExecutor(HASHING) as pool:
            entries = list(pool.map(self._entry, paths))
        shards = [entry for entry in entries if "rows" in entry]
        files = [entry for entry in entries if "rows" not in entry]
        write_json(self.path / MANIFEST, {**self.description, **facts, "shards": shards, "files": files})
        digest = hash_file(self.path / MANIFEST)
        write_atomically(self.path / COMPLETE, lambda file: file.write(f"{digest}\n".encode()))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.path))

    def _entry(self, path: Path) -> dict[str, Any]:
        entry = {"name": self._name(path), "bytes": path.stat().st_size, "sha256": hash_file(path)}
        if path.suffix != ".parquet":
            return entry
        return {**entry, "footer_sha256": hash_footer(path), "rows": pq.read_metadata(path).num_rows}


class ShardWriter:
    """The tables of one shard: all on disk once the context ends, none of them where it ends by an error."""

    def __init__(self, folder: Path, index: int, last: str, group_bytes: int) -> None:
        self._folder, self._index, self._last, self._group_bytes = folder, index, last, group_bytes
        self._tables: dict[str, tuple[AtomicFile, ShardFileWriter]] = {}

    def write(self, tables: Mapping[str, pa.Table]) -> None:
        """Appends rows to each of these tables."""
        for table, content in tables.items():
            path = self._folder / shard_name(table, self._index)
            try:
                if table not in self._tables:
                    file = AtomicFile(path)
                    self._tables[table] = file, ShardFileWriter(file.file, content.schema, self._group_bytes)
                self._tables[table][1].write(content)
            except OSError as error:
                raise disk_error(path, underlying(error) or error) from error

    def discard(self) -> None:
        """Leaves nothing on disk."""
        for file, _ in self._tables.values():
            file.discard()
        self._tables = {}

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for table in sorted(self._tables, key=lambda table: table == self._last):
                    file, writer = self._tables[table]
                    try:
                        writer.close()
                    except OSError as refused:
                        raise disk_error(file.path, refused) from refused
                    file.commit()
        finally:
            self.discard()
