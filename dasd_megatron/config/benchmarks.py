"""What a model is measured on: `evaluation.benchmarks`."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from pydantic import model_validator

from dasd_megatron.config.base import Config, ExecutionOnly, Name, Positive, Temperature
from dasd_megatron.config.prompts import PromptColumns


class BenchmarkConfig(Config):
    """A benchmark: the name of one that the product knows (`aime24`, `aime25`, `gpqa_diamond`, `livecodebench_v5`,
    `livecodebench_v6`, `humaneval`) or that a plugin registers; or a file or data set of one's own, under a name of one's own.

    In a list of benchmarks a name alone will do. What is left out is the benchmark's own, then that of `evaluation`.
    """

    name: Name
    """Of the benchmark, in steps and in the report."""

    path: ExecutionOnly[Path | None] = None
    """Its data, where it isn't fetched: a JSONL, Parquet or CSV file in the schema of the hub's, or a folder with its files."""

    dataset: str | None = None
    """Its data, in place of the benchmark's own: name of a data set of the `datasets` library."""

    subset: str | None = None
    """Of a data set: which of its configurations."""

    split: str | None = None
    """Of a data set: which part; `test` by default."""

    revision: str | None = None
    """Of a data set: which commit or tag."""

    columns: PromptColumns | None = None
    """Of one's own data: what its columns are called."""

    answer_start: str | None = None
    """Of one's own data: a column with the beginning of each answer, in canonical form (`<think>...`), which the model goes on
    with; so it's measured, say, whether it notices a mistake there."""

    template: str | None = None
    """The prompt, with {question} where the problem goes."""

    since: datetime.date | None = None
    """Only problems of this day and later, where the data has dates (LiveCodeBench)."""

    until: datetime.date | None = None
    """Only problems of this day and earlier."""

    limit: Positive | None = None
    """Only the first problems, this number of them."""

    # What follows shapes answers and verdicts, whose steps have it in their own configs, and not the problems.
    grader: ExecutionOnly[str | None] = None
    """How answers are compared with the reference: `math`, `number`, `exact`, `choice`, `code`, or a grader that a plugin
    registers."""

    temperatures: ExecutionOnly[list[Temperature] | None] = None
    """In place of `evaluation.temperatures`."""

    samples: ExecutionOnly[Positive | None] = None
    """In place of `evaluation.samples`."""

    max_tokens: ExecutionOnly[Positive | None] = None
    """In place of `evaluation.max_tokens`."""

    @model_validator(mode="after")
    def _possible(self) -> BenchmarkConfig:
        if self.path is not None and self.dataset is not None:
            raise ValueError("give one of path and dataset, or neither for a benchmark's own data")
        if self.since is not None and self.until is not None and self.since > self.until:
            raise ValueError(f"since={self.since} is after until={self.until}")
        if self.template is not None and "{question}" not in self.template:
            raise ValueError("template needs {question} where the problem goes")
        return self


def named(entry: Any) -> Any:
    """An entry of the list, of which a name alone will do."""
    return {"name": entry} if isinstance(entry, str) else entry
