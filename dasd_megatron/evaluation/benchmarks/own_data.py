"""A benchmark of one's own: a file or data set with named columns."""

from __future__ import annotations

import uuid as uuid_module
from functools import partial

from dasd_megatron.config.benchmarks import BenchmarkConfig
from dasd_megatron.config.prompts import PromptColumns
from dasd_megatron.evaluation.benchmarks.benchmark import Benchmark, Problem, Row, text_of
from dasd_megatron.utils.errors import UserError


def own_data(config: BenchmarkConfig, where: str) -> Benchmark:
    """Raises UserError where it isn't said how answers are graded, or in which column references are."""
    if config.grader is None:
        raise UserError(
            f"{where}.grader is missing: say how answers are compared with the reference: math, number, exact, choice or code"
        )
    columns = config.columns or PromptColumns()
    if columns.answer is None:
        raise UserError(f"{where}.columns.answer=null: answers can't be graded without a reference; name its column")
    start = [] if config.answer_start is None else [config.answer_start]
    return Benchmark(
        problem=partial(_problem, columns, columns.answer, config.answer_start),
        columns=[columns.input, columns.answer, *start],
        grader=config.grader,
        template="{question}",
    )


def _problem(columns: PromptColumns, answer: str, answer_start: str | None, row: Row) -> Problem:
    question = text_of(row, columns.input)
    start = "" if answer_start is None else text_of(row, answer_start)
    uuid = row.get(columns.uuid) if columns.uuid else None
    domain = row.get(columns.domain) if columns.domain else None
    return Problem(
        uuid=str(uuid)
        if uuid not in (None, "")
        else str(uuid_module.uuid5(uuid_module.NAMESPACE_OID, question + start)),
        question=question,
        reference=text_of(row, answer),
        domain=None if domain is None else str(domain),
        answer_start=start,
    )
