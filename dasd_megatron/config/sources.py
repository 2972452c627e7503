"""Where rows come from."""

from __future__ import annotations

from pathlib import Path

from pydantic import model_validator

from dasd_megatron.config.base import Config, ExecutionOnly


class DataSource(Config):
    """A JSONL or Parquet file, or a data set of the `datasets` library."""

    path: ExecutionOnly[Path | None] = None
    """A JSONL or Parquet file."""

    dataset: str | None = None
    """Name of a data set of the `datasets` library."""

    subset: str | None = None
    """Of a data set: which of its configurations."""

    split: str = "train"
    """Of a data set: which part."""

    revision: str | None = None
    """Of a data set: which commit or tag."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of path and dataset")
        return self

    @property
    def name(self) -> str:
        """For messages, and for a key where there is no file."""
        return str(self.path or "/".join(filter(None, (self.dataset, self.subset, self.split))))
