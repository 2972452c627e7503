"""GPQA Diamond: 198 questions of graduate level with four choices each. Its data set asks for consent on the hub."""

from __future__ import annotations

import hashlib

from dasd_megatron.evaluation.benchmarks.benchmark import Benchmark, Problem, Row, text_of

RIGHT, WRONG = "Correct Answer", ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LETTERS = "ABCD"
TEMPLATE = (
    "Answer the following multiple-choice question. Think step by step. The last line of your answer must be "
    "'Answer: LETTER' (without quotes), where LETTER is one of A, B, C and D.\n\n{question}"
)


def _problem(row: Row) -> Problem:
    question = text_of(row, "Question").strip()
    right = text_of(row, RIGHT).strip()
    choices = sorted(
        [right, *(text_of(row, name).strip() for name in WRONG)], key=lambda choice: _order(question, choice)
    )
    lines = [f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    domain = row.get("High-level domain")
    return Problem(
        uuid=str(row.get("Record ID") or hashlib.sha256(question.encode()).hexdigest()[:16]),
        question="\n".join([question, "", *lines]),
        reference=LETTERS[choices.index(right)],
        domain=None if domain is None else str(domain).lower(),
        statement=question,
    )


def _order(question: str, choice: str) -> bytes:
    """By what the question and the choice are, and nothing else: the same in every build, and in any order of the columns."""
    return hashlib.sha256(f"{question}\x1f{choice}".encode()).digest()


GPQA_DIAMOND = Benchmark(
    problem=_problem,
    columns=["Question", RIGHT, *WRONG],
    grader="choice",
    template=TEMPLATE,
    dataset="Idavidrein/gpqa",
    subset="gpqa_diamond",
    split="train",
    count=198,
)
