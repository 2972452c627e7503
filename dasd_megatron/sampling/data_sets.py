"""Rows of files and of data sets of the `datasets` library."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dasd_megatron.config.sources import DataSource
from dasd_megatron.utils.errors import UserError


class Rows:
    """Rows by their numbers. They stay on disk: the Arrow files of `datasets`' cache (HF_DATASETS_CACHE), which processes share.

    Raises UserError where they can't be loaded.
    """

    def __init__(self, source: DataSource, path: Path | None) -> None:
        """`path`: of the source's file, where it has one."""
        self.name = source.name
        self._rows = load_rows(source, path).with_format("arrow")

    def __len__(self) -> int:
        return len(self._rows)

    def check_columns(self, key: str, names: dict[str, str | None], optional: Sequence[str] = ()) -> dict[str, str]:
        """Those of `names` that are there: setting -> column. Raises UserError for one that isn't, and isn't `optional`."""
        there = self._rows.column_names
        for setting, column in names.items():
            if column is not None and column not in there and setting not in optional:
                raise UserError(
                    f"{self.name}: no column {column!r} (it has: {', '.join(there)}); name the right one in "
                    f"{key}.columns.{setting}"
                )
        return {setting: column for setting, column in names.items() if column is not None and column in there}

    def batches(self, columns: Sequence[str], size: int = 1000) -> Iterator[pa.Table]:
        """These columns of all rows, `size` rows at a time."""
        yield from self._rows.select_columns(list(columns)).iter(size)

    def read(self, numbers: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """These columns of these rows, in this order."""
        table: pa.Table = self._rows.select_columns(list(columns))[list(numbers)]
        return table

    def place(self, number: int) -> str:
        """For messages."""
        return f"{self.name}: row {number + 1}"


def load_rows(source: DataSource, path: Path | None) -> Any:
    """A `datasets.Dataset`; `path`: of the source's file, where it has one. Raises UserError."""
    try:
        from datasets import disable_progress_bars, load_dataset
        from datasets.utils.logging import CRITICAL, set_verbosity
    except ImportError:
        raise UserError(f"{source.name}: needs the datasets library: pip install datasets") from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    set_verbosity(CRITICAL)  # the error says it
    if path is not None and not path.stat().st_size:
        raise UserError(f"{source.name}: the file is empty")
    try:
        if path is not None:
            form = "parquet" if path.suffix == ".parquet" else "json"
            return load_dataset(form, data_files=str(path), split="train")
        return load_dataset(source.dataset, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # the library raises many kinds: unknown name, unknown split, no network, malformed rows
        cause = error.__cause__ or error
        raise UserError(f"{source.name}: can't be loaded: {cause or repr(cause)}") from None
