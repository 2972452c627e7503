"""One shard of a table, read by row groups or by rows, together with the columns of the table that it extends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dasd_megatron.utils.errors import UserError

# Of a table that extends another: numbers of the other's rows, ascending.
ROW = "row"


class ShardReader:
    """Reads some columns of a shard. One row group, and one of each table below, is in memory at a time."""

    def __init__(
        self,
        file: pq.ParquetFile,
        columns: Sequence[str],
        base: ShardReader | None,
        damaged: Callable[[Exception], UserError],
    ) -> None:
        """Reads `file`.

        Args:
            base: has the columns that the file lacks: the reader of the shard of the same number of the table below.
            damaged: what to raise for a file that can't be read.
        """
        self._file, self._columns, self._base, self._damaged = file, list(columns), base, damaged
        names = file.schema_arrow.names
        self._own = [name for name in columns if name in names]
        self._has_rows = base is not None and ROW in names
        groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        # Number of the first row of each row group, and of all rows.
        self._starts = np.concatenate([[0], np.cumsum(groups, dtype=np.int64)])
        self._cached: tuple[int, pa.Table] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
        """The rows from `start` to `stop`, in order; at least one table."""
        stop = len(self) if stop is None else stop
        if start >= stop:
            yield self._empty()
            return
        first, last = self._group_of(start), self._group_of(stop - 1)
        for group in range(first, last + 1):
            begin = int(self._starts[group])
            content = self._group(group)
            yield content.slice(max(start - begin, 0), min(stop - begin, len(content)) - max(start - begin, 0))

    def take(self, rows: NDArray[np.integer[Any]]) -> pa.Table:
        """These rows; fast where they ascend."""
        parts = [self._empty()]
        while len(rows):
            group = self._group_of(int(rows[0]))
            begin, end = self._starts[group], self._starts[group + 1]
            outside = np.flatnonzero((rows < begin) | (rows >= end))
            count = int(outside[0]) if len(outside) else len(rows)
            inside, rows = rows[:count] - begin, rows[count:]
            content = self._group(group)
            if inside[-1] - inside[0] + 1 == count and (count < 2 or np.all(np.diff(inside) == 1)):
                parts.append(content.slice(int(inside[0]), count))
            else:
                parts.append(content.take(pa.array(inside)))
        return pa.concat_tables(parts)

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _group(self, group: int) -> pa.Table:
        if self._cached is None or self._cached[0] != group:
            self._cached = group, self._read(group)
        return self._cached[1]

    def _read(self, group: int) -> pa.Table:
        keys = [ROW] if self._has_rows and ROW not in self._own else []
        try:
            content = self._file.read_row_group(group, columns=[*self._own, *keys], use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from None
        if self._base is None:
            return content.select(self._columns)
        rows = content[ROW].to_numpy() if self._has_rows else np.arange(self._starts[group], self._starts[group + 1])
        below = self._base.take(rows)
        for name in below.column_names:
            content = content.append_column(name, below[name])
        return content.select(self._columns)

    def _empty(self) -> pa.Table:
        schema = self._file.schema_arrow
        below = None if self._base is None else self._base._empty()
        fields = [
            schema.field(name) if name in self._own or below is None else below.schema.field(name)
            for name in self._columns
        ]
        return pa.schema(fields).empty_table()
