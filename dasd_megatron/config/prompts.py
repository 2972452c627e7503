"""Problems: `prompts`."""

from __future__ import annotations

from typing import Literal

from dasd_megatron.config.base import Config, Positive
from dasd_megatron.config.sources import DataSource


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


class PromptSource(DataSource):
    """Where problems come from: a JSONL or Parquet file, or a data set of the `datasets` library."""

    columns: PromptColumns = PromptColumns()
    """What its columns are called."""

    limit: Positive | None = None
    """The first rows that are well formed, this number of them; all of them by default."""

    bad_rows: Literal["error", "drop"] = "error"
    """A row that is empty, malformed, or repeats a uuid: stop and name the line, or drop it and count it."""


class PromptsConfig(Config):
    """Problems to learn from and held-out problems to measure on."""

    train: PromptSource | None = None
    """Problems to learn from, of stages without `source` and `responses`. Always dropped: those that are held-out ones or share
    13 words in a row with one, repeated ones, and those that spell out a control token of the teacher."""

    test: PromptSource
    """Held-out problems, with reference answers."""
