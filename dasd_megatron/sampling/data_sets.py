"""Rows of files and of data sets of the `datasets` library."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dasd_megatron.config.sources import DataSource
from dasd_megatron.utils.errors import UserError


class BadRow(Exception):
    """A row that can't become a prompt: the reason (a short name for counting) and what is wrong with it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason

    def refusal(self, place: str, key: str) -> UserError:
        """The error of a source whose bad rows aren't dropped; `key`: of the source in the recipe."""
        return UserError(f"{place}: {self}; fix it, or set {key}.bad_rows=drop to drop such rows")


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


def raw_rows(path: Path | None, source: DataSource) -> Iterator[tuple[str, str | Mapping[str, Any]]]:
    """Rows with the place (file and line or row) to name in an error; lines of JSON as they are."""
    if path is None:
        for number, row in enumerate(load_rows(source, None), 1):
            yield f"{source.dataset}: row {number}", row
    elif path.suffix == ".parquet":
        try:
            batches = pq.ParquetFile(path).iter_batches()
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"{path}: row {number}", row) for number, row in enumerate(rows, 1))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{path}: can't be read as Parquet: {error}") from None
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), 1):
                yield f"{path}: row {number}", row
    else:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield f"{path}: line {number}", line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    yield f"{path}: line {number}", "\ufffd"  # is not JSON, and is reported as such


def json_mapping(raw: str | Mapping[str, Any]) -> Mapping[str, Any]:
    """A row, read where it is a line of JSON. Raises BadRow."""
    if not isinstance(raw, str):
        return raw
    if not raw.strip():
        raise BadRow("empty_line", "the line is empty")
    try:
        row = json.loads(raw)
    except RecursionError:
        raise BadRow("malformed_json", "nested too deeply") from None
    except ValueError as error:
        raise BadRow("malformed_json", f"not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise BadRow("malformed_json", "a line must be one JSON object")
    return row


def hub_files(source: DataSource, names: Sequence[str]) -> Iterator[Path]:
    """Files of a data set on the hub, fetched once into its cache. Raises UserError where they can't be had."""
    from huggingface_hub import hf_hub_download

    assert source.dataset is not None
    for name in names:
        try:
            yield Path(hf_hub_download(source.dataset, name, repo_type="dataset", revision=source.revision))
        except Exception as error:  # the library raises many kinds: no network, no such file, no leave
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise UserError(
                f"{source.dataset}: {name} can't be fetched: {reason}; fetch it elsewhere (hf download {source.dataset} {name} "
                "--repo-type dataset --local-dir FOLDER), and name the folder as the benchmark's path"
            ) from None
