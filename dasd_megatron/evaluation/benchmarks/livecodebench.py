"""LiveCodeBench, code generation: problems of programming contests, by their dates, with public and private tests.

Its data set is a script, which the `datasets` library refuses: its JSON lines are read. "v6" is what the sixth file added: 175
problems; "v5", as reports have it, the problems from August 2024 to January 2025.
"""

from __future__ import annotations

import base64
import datetime
import io
import json
import pickle
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from dasd_megatron.evaluation.benchmarks.benchmark import Benchmark, Problem, Row, text_of

_FUNCTION = "Complete the following starter code. Answer with the whole program in one Python code block.\n```python\n{code}\n```"
_STDIN = (
    "Write a Python program that reads the input from stdin and prints the output to stdout. Answer with the whole program in "
    "one Python code block."
)
TEMPLATE = (
    "You will be given a programming problem. Write a correct Python program that solves it and passes all tests."
    "\n\n{question}"
)


def _problem(row: Row) -> Problem:
    content, starter = text_of(row, "question_content"), str(row.get("starter_code") or "")
    task = _FUNCTION.replace("{code}", starter.strip()) if starter.strip() else _STDIN
    tests = [*_tests(row["public_test_cases"]), *_tests(row["private_test_cases"])]
    if not tests:
        raise ValueError("it has no tests")
    metadata = row.get("metadata") or "{}"
    content_of_metadata = json.loads(metadata) if isinstance(metadata, str) else metadata
    if not isinstance(content_of_metadata, Mapping):
        raise ValueError("'metadata' must be a JSON object")
    function = content_of_metadata.get("func_name")
    functional = any(test.get("testtype") == "functional" for test in tests)
    if functional and not function:
        raise ValueError("its tests call a function, and 'metadata' names none (func_name)")
    reference = {
        **({"function": function} if functional else {}),
        "tests": [{"input": test["input"], "output": test["output"]} for test in tests],
    }
    return Problem(
        uuid=text_of(row, "question_id"),
        question=f"{content.strip()}\n\n{task}",
        reference=json.dumps(reference),
        domain=str(row.get("difficulty") or "") or None,
        statement=content,
        date=datetime.date.fromisoformat(text_of(row, "contest_date")[:10]),
    )


def _tests(value: Any) -> Sequence[Mapping[str, str]]:
    """JSON, as it is or packed. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("its tests are no text")
    try:
        tests = json.loads(value)
    except ValueError:
        tests = json.loads(_unpacked(value))
    if not isinstance(tests, list):
        raise ValueError("its tests are no list")
    for number, test in enumerate(tests, 1):
        if not isinstance(test, Mapping) or not all(isinstance(test.get(name), str) for name in ("input", "output")):
            raise ValueError(f"its test {number} of {len(tests)} has no texts 'input' and 'output'")
    return tests


def _unpacked(value: str) -> str:
    """The authors' form: JSON text, pickled, compressed, in base64. Nothing but a text is unpickled."""
    try:
        text = _TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(value, validate=True)))).load()
    except (ValueError, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"its private tests can't be unpacked: {error}") from None
    if not isinstance(text, str):
        raise ValueError("its private tests are no text")
    return text


class _TextUnpickler(pickle.Unpickler):
    """Refuses whatever would import or call something."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"they ask for {module}.{name}")


def _livecodebench(
    files: Sequence[str], count: int, since: datetime.date | None, until: datetime.date | None
) -> Benchmark:
    return Benchmark(
        problem=_problem,
        columns=["question_content", "question_id", "contest_date", "public_test_cases", "private_test_cases"],
        grader="code",
        template=TEMPLATE,
        dataset="livecodebench/code_generation_lite",
        files=files,
        count=count,
        since=since,
        until=until,
    )


LIVECODEBENCH_V5 = _livecodebench(
    ["test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl"],
    279,
    datetime.date(2024, 8, 1),
    datetime.date(2025, 2, 1),
)
LIVECODEBENCH_V6 = _livecodebench(["test6.jsonl"], 175, None, None)
