"""`dasd grade` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.helpers.coding_problems import PROBLEMS

PLUGIN = """
from dasd_megatron.grading.registry import GRADERS
from dasd_megatron.grading.verdict import Verdict, judged

@GRADERS.register("moody")
def grade_moody(answer, reference):
    return Verdict(None, answer, "failed", "not today") if answer == "no" else judged(True, answer)
"""


def grade(path: Path, rows: list[Any], *options: str) -> tuple[int, list[dict[str, Any]], str]:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    done = subprocess.run(
        [sys.executable, "tools/grade.py", str(path), *options],
        cwd=ROOT,
        env={"PYTHONPATH": str(path.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_math(tmp_path: Path) -> None:
    rows = [
        {"response": f"<think>{n}</think>So \\boxed{{{n}/2}}", "answer": str(n / 2 if n % 3 else n)}
        for n in range(1, 60)
    ]
    rows += [{"response": "<think>12", "answer": "12"}, {"response": "12", "answer": 12}]
    code, verdicts, errors = grade(tmp_path / "rows.jsonl", rows, "--grader", "math", "--workers", "2")
    assert code == 0, errors
    assert [v["correct"] for v in verdicts] == [bool(n % 3) for n in range(1, 60)] + [False, True]
    assert verdicts[1] == {"correct": True, "extracted": "2/2", "reason": "right"}
    assert verdicts[-2] == {"correct": False, "extracted": None, "reason": "no_answer"}
    assert "61 responses: right 41, wrong 19, no_answer 1; 67.2% right" in errors


def test_code(tmp_path: Path) -> None:
    rows, expected = [], []
    for problem in PROBLEMS[:4]:
        for program, passes in problem.solutions:
            tests = [{"input": given, "output": output} for given, output in problem.tests]
            rows.append({"response": f"<think>hm</think>```python\n{program}\n```", "tests": tests})
            expected.append(passes)
    code, verdicts, errors = grade(tmp_path / "rows.jsonl", rows, "--grader", "code", "--workers", "2")
    assert code == 0, errors
    assert [v["correct"] for v in verdicts] == expected
    assert {v["reason"] for v in verdicts} == {"right", "wrong", "crashed"}


def test_a_grader_that_fails(tmp_path: Path) -> None:
    (tmp_path / "moods.py").write_text(PLUGIN)
    rows = [{"response": text, "answer": "1"} for text in ("yes", "no")]
    code, verdicts, errors = grade(tmp_path / "rows.jsonl", rows, "--grader", "moody", "--plugin", "moods")
    assert code == 1
    assert verdicts[1] == {"correct": None, "extracted": "no", "reason": "failed", "detail": "not today"}
    assert "error: 1 could not be graded (correct: null); grade again" in errors


@pytest.mark.parametrize(
    ("row", "grader", "message"),
    [
        ("{", "math", "line 2: not valid JSON"),
        ("[1]", "math", "line 2: a line must be one JSON object"),
        ({"text": "a"}, "math", "line 2: `response` must be a text (the row has: text)"),
        ({"response": "a"}, "math", "line 2: `answer`, the reference, must be a text or a number"),
        ({"response": "a", "answer": "1"}, "code", "line 2: the grader code needs `tests`, a list of"),
        (
            {"response": "a", "tests": [{"input": "1"}]},
            "code",
            "line 2: test 1 of 1 needs the texts `input` and `output`",
        ),
        ({"response": "a", "answer": "1"}, "maths", "--grader: no grader is called 'maths'; the nearest is 'math'"),
    ],
)
def test_mistakes(tmp_path: Path, row: Any, grader: str, message: str) -> None:
    good = {"response": "a", "answer": "1", "tests": [{"input": "", "output": "1"}]}
    code, verdicts, errors = grade(tmp_path / "rows.jsonl", [good, row], "--grader", grader)
    assert (code, verdicts) == (2, [])
    assert f"{message}" in errors
    assert "Traceback" not in errors


def test_odd_rows(tmp_path: Path) -> None:
    """Half a surrogate pair comes back as it was written; a row that nests without end is named; a pipe is refused."""
    rows = [r'{"response": "\\boxed{\ud800}", "answer": "1"}', r'{"response": "\\boxed{1}", "answer": "1"}']
    code, verdicts, errors = grade(tmp_path / "rows.jsonl", rows, "--grader", "math")
    assert code == 0, errors
    assert [verdict["correct"] for verdict in verdicts] == [False, True]
    assert verdicts[0]["extracted"] == "\ud800"
    code, _, errors = grade(tmp_path / "rows.jsonl", [*rows, "[" * 100_000], "--grader", "math")
    assert (code, errors.count("error: ")) == (2, 1)
    assert "rows.jsonl: line 3: not valid JSON" in errors
    command = [sys.executable, "tools/grade.py", "/dev/stdin", "--grader", "math"]
    done = subprocess.run(command, cwd=ROOT, input="{}", capture_output=True, text=True)
    assert done.returncode == 2
    assert "/dev/stdin: is no file; rows are read more than once" in done.stderr
