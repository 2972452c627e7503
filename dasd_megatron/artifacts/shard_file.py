"""Parquet files of one shard: row groups small enough to hold in memory, with a checksum on every page."""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

# Of a row group in memory: what a reader holds at a time.
GROUP_BYTES = 8 << 20


class ShardFileWriter:
    """Writes tables of one schema to a file, as row groups. The same tables give the same bytes."""

    def __init__(self, file: IO[bytes], schema: pa.Schema, group_bytes: int = GROUP_BYTES) -> None:
        self._writer = pq.ParquetWriter(
            file, schema, compression="zstd", write_page_checksum=True, **_encodings(schema)
        )
        self._group_bytes = group_bytes

    def write(self, content: pa.Table) -> None:
        """Appends the rows of one table."""
        if len(content):
            share = min(1.0, self._group_bytes / max(content.nbytes, 1))
            self._writer.write_table(content, row_group_size=math.ceil(len(content) * share))

    def close(self) -> None:
        """Writes the footer. The file itself stays open."""
        self._writer.close()


def open_shard_file(path: Path) -> pq.ParquetFile:
    """The file, to be read. Not memory-mapped: an error of the file system would be a signal then."""
    return pq.ParquetFile(path, page_checksum_verification=True)


def hash_footer(path: Path) -> str:
    """SHA-256 of a Parquet file's footer, in hex: of all that says where pages are and how to read them."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-min(length + 8, file.seek(0, os.SEEK_END)), os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    """Numbers that seldom repeat take far fewer bytes without a dictionary: offsets as differences, floats byte by byte."""
    encoding, dictionary = {}, []
    for field in schema:
        listed = pa.types.is_list(field.type)
        path = f"{field.name}.list.element" if listed else field.name
        if pa.types.is_floating(field.type.value_type if listed else field.type):
            encoding[path] = "BYTE_STREAM_SPLIT"
        elif listed and field.name.endswith("_starts"):
            encoding[path] = "DELTA_BINARY_PACKED"
        else:
            dictionary.append(path)
    return {"use_dictionary": dictionary, "column_encoding": encoding or None}
