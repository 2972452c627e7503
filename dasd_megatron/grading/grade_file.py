"""Grades responses that are in a JSONL file, in several processes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dasd_megatron.grading.registry import GRADERS, check_reference, grade
from dasd_megatron.grading.sandbox.sandbox import check_sandbox
from dasd_megatron.grading.verdict import Verdict
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.registry import load_plugins

# Rows that are read ahead, by process.
_AHEAD = 8


def grade_file(path: Path, grader: str, plugins: list[str], workers: int) -> Iterator[Verdict]:
    """A verdict for each row of `path`, in order. Rows have `response`, and `answer`; for the grader `code`, `tests`.

    Processes import `plugins` first.

    Raises UserError naming the line of a row that is no such row, and where no sandbox works.
    """
    GRADERS.check(grader, "--grader")
    if grader == "code":
        check_sandbox()
    count = sum(1 for _ in _rows(path, grader))  # a row that can't be graded is found before hours of grading
    if not count:
        raise UserError(f"{path}: no row in it")
    waiting: deque[Future[Verdict]] = deque()
    pool = ProcessPoolExecutor(
        min(workers, count), get_context("spawn"), initializer=load_plugins, initargs=(plugins, "--plugin")
    )
    with pool:
        try:
            for text, reference in _rows(path, grader):
                waiting.append(pool.submit(grade, text, reference, grader))
                if len(waiting) >= _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError("a grading process was killed; where memory ran out, give fewer --workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


def row_count(path: Path) -> int:
    """Lines that hold something. Raises UserError where the file can't be read."""
    return sum(1 for _ in _lines(path))


def _rows(path: Path, grader: str) -> Iterator[tuple[str, str]]:
    """Response and reference of each row. Raises UserError."""
    for number, line in _lines(path):
        place = f"{path}: line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not valid JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{place}: a line must be one JSON object")
        if not isinstance(row.get("response"), str):
            raise UserError(f"{place}: `response` must be a text (the row has: {', '.join(row) or 'nothing'})")
        yield row["response"], _reference(row, grader, place)


def _reference(row: Mapping[str, Any], grader: str, place: str) -> str:
    if grader == "code":
        if "tests" not in row:
            raise UserError(f'{place}: the grader code needs `tests`, a list of {{"input": ..., "output": ...}}')
        tests = row["tests"]
        reference = tests if isinstance(tests, str) else json.dumps(tests)
    else:
        answer = row.get("answer")
        if isinstance(answer, bool) or not isinstance(answer, (str, int, float)):
            raise UserError(f"{place}: `answer`, the reference, must be a text or a number")
        reference = str(answer)
    try:
        check_reference(reference, grader)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    return reference


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if path.exists() and not path.is_file():
        raise UserError(
            f"{path}: is no file; rows are read more than once, so a pipe won't do: write them to a file first"
        )
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read: {error}") from None
