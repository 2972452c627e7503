"""Benchmarks from files in the hub's schemas: what is asked, how it's graded, and what is refused."""

from __future__ import annotations

import base64
import csv
import datetime
import json
import pickle
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.benchmarks import BenchmarkConfig
from dasd_megatron.config.evaluation import EvaluationConfig
from dasd_megatron.config.load import load_recipe
from dasd_megatron.evaluation.benchmark_step import BenchmarkStep, BenchmarkStepConfig
from dasd_megatron.evaluation.benchmarks.benchmark import Benchmark, answer_settings
from dasd_megatron.evaluation.benchmarks.gpqa import GPQA_DIAMOND, WRONG
from dasd_megatron.evaluation.benchmarks.registry import BENCHMARKS, declared_benchmark
from dasd_megatron.grading.registry import grade
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.utils.errors import UserError
from tests.conftest import TOY
from tests.helpers.coding_problems import FUNCTIONS, STDIN, CodingProblem

KEY = "evaluation.benchmarks.0"
AIME = {"id": 60, "problem": "Find $m+n$.", "solution": "...", "answer": "204", "url": "", "year": "2024"}
GPQA = {
    "Question": "Which gas is lightest?",
    "Correct Answer": "hydrogen",
    "Incorrect Answer 1": "helium",
    "Incorrect Answer 2": "neon",
    "Incorrect Answer 3": "argon",
    "Record ID": "rec1",
    "High-level domain": "Chemistry",
}
HUMAN_EVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def double(x):\n    '''Twice x.'''\n",
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def read(make_context: Any) -> Any:
    """Runs the step: returns the problems and the manifest."""
    count = 0

    def run(name: str, path: Path, **settings: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        nonlocal count
        count += 1
        config = BenchmarkStepConfig(benchmark=BenchmarkConfig(name=name, path=path, **settings), key=KEY)
        context = make_context(config, {"source": path}, name=f"benchmark_{count}")
        context.output.finish(**BenchmarkStep().run(context))
        artifact = Artifact(context.output.path)
        return artifact.read("prompts").to_pylist(), artifact.manifest

    return run


def test_aime(read: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (problem,), manifest = read("aime24", jsonl(tmp_path / "a.jsonl", [AIME]))
    assert problem["input"].startswith(
        "Find $m+n$.\n\nPlease reason step by step, and put your final answer within \\boxed{}"
    )
    assert (problem["uuid"], problem["answer"], problem["statement"]) == ("60", "204", "Find $m+n$.")
    assert grade("<think>a</think>So \\boxed{204}.", problem["answer"], "math").correct
    said = capsys.readouterr().err
    assert f"1 problems, content {manifest['sha256'][:12]}" in said
    assert "warning: benchmark_1: aime24 has 30 problems as it is mostly reported, and there are 1 here" in said
    assert BENCHMARKS.get("aime24").max_tokens == BENCHMARKS.get("aime25").max_tokens == 102_400


@pytest.mark.sandbox
def test_human_eval(read: Any, tmp_path: Path) -> None:
    (problem,), _ = read("humaneval", jsonl(tmp_path / "h.jsonl", [HUMAN_EVAL]))
    assert "Complete the following Python function." in problem["input"]
    assert grade("```python\ndef double(x):\n    return x + x\n```", problem["answer"], "code").correct is True
    assert grade("```python\ndef double(x):\n    return x\n```", problem["answer"], "code").correct is False
    assert grade("    return x + x", problem["answer"], "code").correct is True  # a continuation


def test_gpqa_choices_depend_on_the_question_alone(read: Any, tmp_path: Path) -> None:
    """Shuffled without a seed they differ between builds (inspect_evals#2391), and what is graded again is right by chance
    (evalscope#1579)."""
    path = tmp_path / "gpqa.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, GPQA)
        writer.writeheader()
        writer.writerow(GPQA)
    (problem,), _ = read("gpqa_diamond", path)
    turned = {**GPQA, WRONG[0]: GPQA[WRONG[2]], WRONG[2]: GPQA[WRONG[0]]}
    (other,), _ = read("gpqa_diamond", jsonl(tmp_path / "g.jsonl", [dict(reversed(turned.items()))]))
    assert {**problem, "uuid": ""} == {**other, "uuid": ""}
    place = problem["input"].splitlines().index(f"{problem['answer']}) hydrogen")
    assert place > 0
    assert problem["statement"] == GPQA["Question"]
    assert grade(f"Answer: {problem['answer']}", problem["answer"], "choice").correct


def test_gold_letters_are_spread() -> None:
    """Every gold letter was D: evalchemy#155."""
    problems = [GPQA_DIAMOND.problem({**GPQA, "Question": f"Question {n}?"}) for n in range(400)]
    letters = Counter(problem.reference for problem in problems)
    assert set(letters) == set("ABCD")
    assert min(letters.values()) > 70


@pytest.mark.sandbox
def test_livecodebench(read: Any, tmp_path: Path) -> None:
    """Its data set is a script, which `datasets` refuses: its lines are read, packed tests and all."""
    rows = [problem.row() for problem in (*STDIN[:3], *FUNCTIONS[:3])]
    problems, manifest = read("livecodebench_v6", jsonl(tmp_path / "v6.jsonl", rows))
    assert [problem["uuid"] for problem in problems] == [row["question_id"] for row in rows]
    assert manifest["dates"] == ["2025-01-15", "2025-01-15"]
    for problem, declared in zip(problems, (*STDIN[:3], *FUNCTIONS[:3]), strict=True):
        reference = json.loads(problem["answer"])
        assert [(test["input"], test["output"]) for test in reference["tests"]] == declared.tests
        assert reference.get("function") == declared.function
        program, passes = declared.solutions[0]
        assert grade(f"<think>a</think>```python\n{program}\n```", problem["answer"], "code").correct is passes
    assert "reads the input from stdin" in problems[0]["input"]
    assert "class Solution:" in problems[3]["input"]


@pytest.mark.sandbox
def test_livecodebench_by_date(read: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ "v6" is 175 or 454 problems (LiveCodeBench#145): count and dates are said."""
    dates = ("2024-07-31", "2024-08-01", "2025-01-31", "2025-02-02", "2025-04-06")
    rows = [CodingProblem(f"p{n}", STDIN[0].tests, (), date=f"{date}T00:00:00").row() for n, date in enumerate(dates)]
    folder = tmp_path / "lcb"
    for number, name in enumerate(("test", "test2", "test3", "test4", "test5")):
        jsonl(folder / f"{name}.jsonl", [rows[number]])
    problems, manifest = read("livecodebench_v5", folder)
    assert [problem["uuid"] for problem in problems] == ["p1", "p2"]
    assert (manifest["dates"], manifest["outside_dates"]) == (["2024-08-01", "2025-01-31"], 3)
    assert "2 problems, 2024-08-01 to 2025-01-31, content " in capsys.readouterr().err
    since, until = datetime.date(2025, 2, 1), datetime.date(2025, 12, 31)
    assert len(read("livecodebench_v5", folder, since=since, until=until)[0]) == 2
    with pytest.raises(UserError, match=r"no problem in .*: all 5 are before 2026-01-01 or after"):
        read("livecodebench_v5", folder, since=datetime.date(2026, 1, 1), until=datetime.date(2026, 2, 1))
    (folder / "test3.jsonl").unlink()
    with pytest.raises(UserError, match=r"test3\.jsonl: no such file; livecodebench_v5 is in: test\.jsonl, test2"):
        read("livecodebench_v5", folder)


class _Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1 / 0",)


def test_packed_tests_run_nothing(read: Any, tmp_path: Path) -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(_Harm()))).decode()
    row = {**STDIN[0].row(), "private_test_cases": packed}
    with pytest.raises(UserError, match=r"line 1: its private tests can't be unpacked: they ask for builtins\.eval"):
        read("livecodebench_v6", jsonl(tmp_path / "v6.jsonl", [row]))


def test_own_data(read: Any, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "own.jsonl", [{"q": "2+2?", "gold": 4, "topic": "sums"}, {"q": "3+3?", "gold": 6}])
    columns = {"input": "q", "answer": "gold", "domain": "topic", "uuid": None}
    problems, _ = read("mine", path, grader="math", columns=columns, template="Compute: {question}")
    assert [(p["input"], p["answer"], p["domain"]) for p in problems] == [
        ("Compute: 2+2?", "4", "sums"),
        ("Compute: 3+3?", "6", None),
    ]
    assert len({p["uuid"] for p in problems}) == 2
    assert len(read("mine", path, grader="math", columns=columns, limit=1)[0]) == 1


@pytest.mark.parametrize(
    ("name", "row", "settings", "message"),
    [
        ("aime24", {"question": "a", "answer": "1"}, {}, r"line 2: no column 'problem', which aime24 has \(there are: question"),
        ("aime24", {**AIME, "id": 61, "answer": ""}, {}, r"line 2: 'answer' is missing or empty"),
        ("aime24", {**AIME, "id": 61, "answer": "1/2"}, {}, r"line 2: 'answer' is '1/2', not a whole number from 0 to 999"),
        ("aime24", AIME, {}, r"line 2: the problem '60' stands at .*line 1 already"),
        ("aime24", {**AIME, "id": 61}, {"columns": {}}, r"0\.columns: aime24 has columns of its own"),
        ("aime24", {**AIME, "id": 61}, {"since": "2024-01-01"}, r"line 1: aime24 has no dates: leave out since and until"),
        ("gpqa_diamond", {"Question": "a"}, {}, r"line 1: no column 'Question', which gpqa_diamond has"),
        ("mine", {**AIME, "id": 61}, {"grader": "math"}, r"line 1: no column 'input', which mine has"),
        ("mine", AIME, {"grader": "math", "columns": {"input": "problem", "answer": None}}, r"answer=null: answers can't"),
        ("mine", AIME, {"grader": "code", "columns": {"input": "problem"}}, r"line 1: tests of code must be a JSON"),
        ("mine", AIME, {"grader": "choice", "columns": {"input": "problem"}}, r"line 1: the reference of the grader choice is a"),
        ("mine", {**AIME, "id": 61}, {}, r"0\.grader is missing: say how answers are compared"),
    ],
)  # fmt: skip
def test_mistakes(
    read: Any, tmp_path: Path, name: str, row: dict[str, Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read(name, jsonl(tmp_path / "data.jsonl", [AIME, row]), **settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"public_test_cases": '[{"in": "1", "output": "2"}]'},
            r"line 1: its test 1 of 1 has no texts 'input' and 'output'",
        ),
        ({"public_test_cases": '["1"]'}, r"line 1: its test 1 of 1 has no texts"),
        ({"metadata": "[1]"}, r"line 1: 'metadata' must be a JSON object"),
    ],
)
def test_malformed_problems_of_livecodebench(read: Any, tmp_path: Path, change: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read("livecodebench_v6", jsonl(tmp_path / "v6.jsonl", [{**FUNCTIONS[0].row(), **change}]))


def test_malformed_and_absent_data(read: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("{\n")
    with pytest.raises(UserError, match=r"data\.jsonl: line 1: not valid JSON"):
        read("aime24", path)
    path.write_text("")
    with pytest.raises(UserError, match=r"aime24: no problem in .*data\.jsonl"):
        read("aime24", path)


def test_whose_setting_counts() -> None:
    declared = Benchmark(problem=GPQA_DIAMOND.problem, columns=[], grader="math", template="", max_tokens=102_400)
    entry = BenchmarkConfig(name="a")
    assert answer_settings(entry, declared, EvaluationConfig()).max_tokens == 102_400
    assert answer_settings(entry, declared, EvaluationConfig(max_tokens=50)).max_tokens == 50
    own = BenchmarkConfig(name="a", max_tokens=7, samples=3, temperatures=[0.0])
    settings = answer_settings(own, declared, EvaluationConfig(max_tokens=50, samples=9))
    assert (settings.max_tokens, settings.samples, settings.temperatures) == (7, 3, [0.0])
    assert answer_settings(entry, GPQA_DIAMOND, EvaluationConfig()).max_tokens == 81_920


def test_every_benchmark_is_declared_whole() -> None:
    for name in BENCHMARKS.names():
        declared = declared_benchmark(BenchmarkConfig(name=name), KEY)
        assert declared.dataset
        assert declared.count
        assert "{question}" in declared.template


def test_an_engine_with_no_room_for_the_longest_answer_is_refused(tmp_path: Path) -> None:
    """It would cut every long answer off, and give zeros: open-instruct#1854. AIME's longest answer is declared, not set."""
    path = jsonl(tmp_path / "aime.jsonl", [AIME])
    model = {"model": str(TOY / "student")}
    recipe = {"name": "e", "run_dir": str(tmp_path / "run"), "teacher": model, "student": model, "stages": []}
    recipe["evaluation"] = {"teacher": False, "benchmarks": [{"name": "aime24", "path": str(path)}]}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    build_steps(load_recipe(tmp_path / "recipe.yaml", ["engine.max_length=131072"]))
    with pytest.raises(UserError, match=r"evaluation\.benchmarks\.0\.max_tokens=102400: it counts both"):
        build_steps(load_recipe(tmp_path / "recipe.yaml", ["engine.max_length=65536"]))
