"""AIME, the American Invitational Mathematics Examination: 30 problems a year, whose answers are whole numbers from 0 to 999."""

from __future__ import annotations

import re

from dasd_megatron.evaluation.benchmarks.benchmark import Benchmark, Problem, Row, text_of

TEMPLATE = "{question}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
_ANSWER = re.compile(r"\d{1,3}(?:\.0)?")


def _problem(row: Row) -> Problem:
    answer = text_of(row, "answer").strip()
    if not _ANSWER.fullmatch(answer):
        raise ValueError(f"'answer' is {answer!r}, not a whole number from 0 to 999")
    question = text_of(row, "problem")
    uuid = row.get("id")
    return Problem(str(uuid) if uuid is not None else question[:40], question, str(int(float(answer))), "math")


def _aime(dataset: str, split: str) -> Benchmark:
    return Benchmark(
        problem=_problem,
        columns=["problem", "answer"],
        grader="math",
        template=TEMPLATE,
        dataset=dataset,
        split=split,
        count=30,
        max_tokens=102_400,  # the paper's
    )


AIME24 = _aime("HuggingFaceH4/aime_2024", "train")
AIME25 = _aime("math-ai/aime25", "test")
