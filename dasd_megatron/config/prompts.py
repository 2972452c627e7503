"""Problems: `prompts`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from dasd_megatron.config.base import Config, ExecutionOnly, Positive


class PromptColumns(Config):
    """Names of a prompt file's columns. `uuid`, `domain` and `answer` may be absent from the file (null)."""

    uuid: str | None = "uuid"
    """Identifies a problem; made from its text where absent."""

    input: str = "input"
    """The problem."""

    domain: str | None = "domain"
    """Of the problem, for quotas and figures."""

    answer: str | None = "answer"
    """The reference answer, by which responses are graded."""


class PromptSource(Config):
    """Where problems come from: a JSONL or Parquet file, or a data set of the `datasets` library."""

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

    columns: PromptColumns = PromptColumns()
    """What its columns are called."""

    limit: Positive | None = None
    """The first rows that are well formed, this number of them; all of them by default."""

    bad_rows: Literal["error", "drop"] = "error"
    """A row that is empty, malformed, or repeats a uuid: stop and name the line, or drop it and count it."""

    @model_validator(mode="after")
    def _one_source(self) -> PromptSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of path and dataset")
        return self


class PromptsConfig(Config):
    """Problems to learn from and held-out problems to measure on."""

    train: PromptSource
    """Problems to learn from. Always dropped: those that are held-out ones or share 13 words in a row with one, repeated ones,
    and those that spell out a control token of the teacher."""

    test: PromptSource
    """Held-out problems, with reference answers."""
