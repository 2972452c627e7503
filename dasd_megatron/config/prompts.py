"""Problems: `prompts`."""

from __future__ import annotations

from typing import Literal

from dasd_megatron.config.base import Config, Name, Positive
from dasd_megatron.config.sources import DataSource

# Of all answers, or by domain.
Grader = str | dict[str, str]


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

    grader: Grader = "math"
    """How the column `answer` is graded where right answers are asked for (`filters.right_answers_only`, `mixed_policy`): `math`,
    `number`, `exact`, `choice`, `code`, or a plugin's; or one for each domain, {math: math, code: code}: others aren't graded."""

    limit: Positive | None = None
    """The first rows that are well formed, this number of them; all of them by default."""

    bad_rows: Literal["error", "drop"] = "error"
    """A row that is empty, malformed, or repeats a uuid: stop and name the line, or drop it and count it."""


class PromptsConfig(Config):
    """Problems to learn from."""

    train: PromptSource | None = None
    """Problems to learn from, of stages without `source` and `responses`. Always dropped: those that are held-out ones or share
    13 words in a row with one, repeated ones, and those that spell out a control token of the teacher."""

    held_out: list[Name] | None = None
    """Benchmarks (of `evaluation.benchmarks`) whose problems are never learned from; all of them by default. Name those that were
    there at first, to add another benchmark to a run without making its data again."""
