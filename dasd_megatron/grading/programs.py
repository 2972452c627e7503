"""The grader `code`: a Python program that passes all tests, run in the sandbox."""

from __future__ import annotations

import json
import re
import secrets
import textwrap
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from dasd_megatron.grading.program_tests import Check, FunctionTest, FunctionTests, StdinTest, StdinTests, program_tests
from dasd_megatron.grading.sandbox.sandbox import Outcome, SandboxError, run_program
from dasd_megatron.grading.verdict import FAILED, NOT_EXTRACTED, RIGHT, TIMED_OUT, WRONG, Verdict

_FENCE = re.compile(r"^(?P<indent>[ \t]*)(?:```|~~~)(?P<language>[^\n`]*)$", re.MULTILINE)
# A sandbox that has failed is tried again.
_TRIES = 3
# Of a program's limits, by how it ended (sandbox.End).
_LIMITS = {
    "cpu_time": (TIMED_OUT, "out of CPU time"),
    "idle": (TIMED_OUT, "waited for something that didn't come"),
    "memory": ("too_much_memory", "took too much memory"),
    "output": ("too_much_output", "printed too much"),
    "files": ("too_many_files", "made too many files"),
    "processes": ("too_many_processes", "started too many threads or processes"),
}


def grade_code(answer: str, reference: str) -> Verdict:
    """Whether the program in `answer` passes the tests `reference` (see program_tests)."""
    tests = program_tests(reference)
    program = extract_code(answer)
    if not program.strip():
        return Verdict(False, None, NOT_EXTRACTED)
    for left in reversed(range(_TRIES)):
        try:
            reason, detail = _problem(program, tests) or (RIGHT, None)
        except SandboxError as error:
            if not left:
                return Verdict(None, program, FAILED, str(error))
            continue
        return Verdict(reason == RIGHT, program, reason, detail)
    raise AssertionError("unreachable")


def extract_code(answer: str) -> str:
    """The last fenced block that says it is Python, else the last one; it may lack its end. The whole text without a fence."""
    fences = list(_FENCE.finditer(answer))
    if not fences:
        return answer
    blocks = []
    for place in range(0, len(fences), 2):
        end = fences[place + 1].start() if place + 1 < len(fences) else len(answer)
        indent, language = fences[place].group("indent"), fences[place].group("language").strip().lower()
        content = answer[fences[place].end() : end].lstrip("\n")
        blocks.append((language.startswith("py"), textwrap.dedent(content) if indent else content))
    return next((content for is_python, content in reversed(blocks) if is_python), blocks[-1][1])


def _problem(program: str, tests: StdinTests | FunctionTests | Check) -> tuple[str, str | None] | None:
    """The first test that the program fails, as a reason and detail; None for none."""
    if isinstance(tests, Check):
        word = secrets.token_hex(16)
        asked = json.dumps({"statements": tests.statements, "word": word}).encode()
        outcome = run_program(f"{tests.prompt}\n{program}", asked, "check")
        return _ended_badly(outcome) or (None if outcome.stdout == word.encode() else (WRONG, "ended before its check"))
    each: Sequence[StdinTest | FunctionTest] = tests.tests
    for number, test in enumerate(each, 1):
        if isinstance(test, FunctionTest):
            assert isinstance(tests, FunctionTests)
            asked = json.dumps({"function": tests.function, "arguments": test.arguments}).encode()
            outcome = run_program(program, asked, "function")
            passed = _returned(outcome.stdout, test.value)
        else:
            outcome = run_program(program, test.input.encode(errors="replace"), "stdin")
            passed = same_output(outcome.stdout.decode(errors="replace"), test.output)
        problem = _ended_badly(outcome) or (None if passed else (WRONG, None))
        if problem is not None:
            reason, detail = problem
            return reason, f"test {number} of {len(each)}" + (f": {detail}" if detail else "")
    return None


def _ended_badly(outcome: Outcome) -> tuple[str, str | None] | None:
    if outcome.end != "exited":
        return _LIMITS[outcome.end]
    if outcome.exit_code == 0:
        return None
    lines = outcome.stderr.decode(errors="replace").strip().splitlines()
    return "crashed", lines[-1][:300] if lines else f"exit code {outcome.exit_code}"


def _returned(printed: bytes, expected: Any) -> bool:
    try:
        return bool(json.loads(printed) == expected)
    except (ValueError, RecursionError):  # it ended by itself before its function had returned, or nests without end
        return False


def same_output(printed: str, expected: str) -> bool:
    """Whether both have the same lines, white space around them apart; numbers may be written in several ways."""
    ours, theirs = _lines(printed), _lines(expected)
    return len(ours) == len(theirs) and all(map(_same_line, ours, theirs))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_line(printed: str, expected: str) -> bool:
    if printed == expected:
        return True
    try:
        return _numbers(printed) == _numbers(expected)
    except InvalidOperation:  # a word that is no number, or one that equals nothing (snan)
        return False


def _numbers(line: str) -> Sequence[Decimal]:
    return [Decimal(word) for word in line.split()]
