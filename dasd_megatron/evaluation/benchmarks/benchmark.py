"""What a benchmark declares, and how a recipe's settings change it."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dasd_megatron.config.benchmarks import BenchmarkConfig
from dasd_megatron.config.evaluation import EvaluationConfig

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Problem:
    """A problem of a benchmark.

    Attributes:
        uuid: identifies it within the benchmark.
        question: what goes into the prompt's template.
        reference: what its grader compares with.
        domain: a part of the benchmark, for figures.
        date: of its publication, where the data has it.
        statement: of the problem alone, which is never learned from; None: the question.
        answer_start: what the answer begins with, in canonical form.
    """

    uuid: str
    question: str
    reference: str
    domain: str | None = None
    date: datetime.date | None = None
    statement: str | None = None
    answer_start: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        problem: makes one of a row of its data. Raises ValueError, with what is wrong with the row.
        columns: that a row needs.
        grader: see grading/registry.py.
        template: of the prompt; {question} is where the problem goes.
        dataset, subset, split, revision: its data on the hub; None: it has to be given.
        files: of the data set that are read, JSON lines; none: it is loaded by the `datasets` library.
        count: how many problems there are without settings that choose some; None where that isn't known.
        max_tokens: of an answer, where nothing else says it.
        since, until: dates of its problems.
    """

    problem: Callable[[Row], Problem]
    columns: Sequence[str]
    grader: str
    template: str
    dataset: str | None = None
    subset: str | None = None
    split: str = "test"
    revision: str | None = None
    files: Sequence[str] = ()
    count: int | None = None
    max_tokens: int | None = None
    since: datetime.date | None = None
    until: datetime.date | None = None


@dataclass(frozen=True)
class AnswerSettings:
    """How answers to a benchmark are sampled."""

    temperatures: Sequence[float]
    samples: int
    max_tokens: int


def answer_settings(config: BenchmarkConfig, declared: Benchmark, evaluation: EvaluationConfig) -> AnswerSettings:
    """The entry's own settings, else those that `evaluation` was given, else the benchmark's, else `evaluation`'s defaults."""
    max_tokens = config.max_tokens
    if max_tokens is None and "max_tokens" not in evaluation.model_fields_set:
        max_tokens = declared.max_tokens
    return AnswerSettings(
        temperatures=evaluation.temperatures if config.temperatures is None else config.temperatures,
        samples=config.samples or evaluation.samples,
        max_tokens=max_tokens or evaluation.max_tokens,
    )


def text_of(row: Row, column: str) -> str:
    """A column's text. Raises ValueError where there is none."""
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)) or not str(value).strip():
        raise ValueError(f"{column!r} is missing or empty")
    return str(value)
