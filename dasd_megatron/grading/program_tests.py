"""The reference of the grader `code`: a JSON object with tests of a program.

{"tests": [{"input": "3\\n", "output": "9\\n"}]}                   what it reads, and what it must print
{"function": "square", "tests": [{"input": "3", "output": "9"}]}  arguments as JSON, one a line, and the value, as LiveCodeBench
{"prompt": "def square(x): ...", "check": "assert square(3) == 9"}  what goes before it, and what must not raise, as HumanEval
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dasd_megatron.utils.errors import UserError


@dataclass(frozen=True)
class StdinTest:
    """What a program reads, and what it must print."""

    input: str
    output: str


@dataclass(frozen=True)
class FunctionTest:
    """A function's arguments and its value."""

    arguments: Sequence[Any]
    value: Any


@dataclass(frozen=True)
class StdinTests:
    """Of a program that reads and prints."""

    tests: Sequence[StdinTest]


@dataclass(frozen=True)
class FunctionTests:
    """Of a function, or a method of a class `Solution`."""

    function: str
    tests: Sequence[FunctionTest]


@dataclass(frozen=True)
class Check:
    """Statements that raise where the program is wrong; `prompt` stands before it."""

    prompt: str
    statements: str


@lru_cache(maxsize=16)  # a problem's answers come one after another
def program_tests(reference: str) -> StdinTests | FunctionTests | Check:
    """The tests. Raises UserError, with what is wrong, for a reference of another form."""
    try:
        content = json.loads(reference)
    except ValueError as error:
        raise UserError(f"tests of code must be a JSON object: {error}") from None
    if isinstance(content, list):
        content = {"tests": content}
    if not isinstance(content, dict):
        raise UserError("tests of code must be a JSON object, or a list of tests")
    if "check" in content:
        return Check(_text(content, "prompt", ""), _text(content, "check"))
    tests = content.get("tests")
    if not isinstance(tests, list) or not tests:
        raise UserError("tests of code need a list `tests` that isn't empty, or a `check`")
    for number, test in enumerate(tests, 1):
        if not isinstance(test, dict) or not all(isinstance(test.get(name), str) for name in ("input", "output")):
            raise UserError(f"test {number} of {len(tests)} needs the texts `input` and `output`")
    function = content.get("function")
    if function is None:
        return StdinTests([StdinTest(test["input"], test["output"]) for test in tests])
    try:
        calls = [
            FunctionTest([json.loads(line) for line in test["input"].split("\n")], json.loads(test["output"]))
            for test in tests
        ]
    except ValueError as error:
        raise UserError(f"tests of the function {function}: arguments and values must be JSON: {error}") from None
    return FunctionTests(str(function), calls)


def _text(content: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = content.get(name, default)
    if not isinstance(value, str):
        raise UserError(f"tests of code: {name!r} must be a text")
    return value
