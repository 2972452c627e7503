"""Columns of a table as numpy arrays, without a Python object for every number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def lists(batch: pa.Table, column: str) -> Iterator[NDArray[Any]]:
    """Each row of a column of lists of numbers, as a view of the column's memory."""
    for chunk in batch[column].chunks:
        values, offsets = chunk.values.to_numpy(zero_copy_only=False), chunk.offsets.to_numpy()
        for first, last in itertools.pairwise(offsets):
            yield values[first:last]


def numpy_rows(batch: pa.Table) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries; lists of numbers are numpy arrays."""
    columns = [
        lists(batch, name) if pa.types.is_list(batch.schema.field(name).type) else batch[name].to_pylist()
        for name in batch.column_names
    ]
    for row in zip(*columns, strict=True):
        yield dict(zip(batch.column_names, row, strict=True))


def list_array(rows: Sequence[NDArray[Any]], of: pa.DataType) -> pa.ListArray:
    """A column of lists of numbers."""
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    values = np.concatenate(rows) if rows else np.zeros(0)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, of))
