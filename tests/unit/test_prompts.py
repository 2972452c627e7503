"""Prompts: every source, and every kind of bad row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.benchmarks import BenchmarkConfig
from dasd_megatron.config.prompts import PromptSource
from dasd_megatron.evaluation.benchmark_step import BenchmarkStep, BenchmarkStepConfig
from dasd_megatron.sampling.decontamination import HeldOutProblems
from dasd_megatron.sampling.prompts import PromptsStep, PromptsStepConfig
from dasd_megatron.utils.errors import UserError
from tests.conftest import TOY

GOOD = {"uuid": "1", "input": "2+2?", "domain": "math", "answer": "4"}


def source(path: Path, **fields: Any) -> PromptsStepConfig:
    return PromptsStepConfig(source=PromptSource(path=path, **fields))


def benchmark(make_context: Any, path: Path) -> Path:
    """Problems that are held out."""
    config = BenchmarkConfig(name="test", path=path, grader="exact")
    context = make_context(
        BenchmarkStepConfig(benchmark=config, key="evaluation.benchmarks.0"), {"source": path}, name="test"
    )
    context.output.finish(**BenchmarkStep().run(context))
    folder: Path = context.output.path
    return folder


def read(
    make_context: Any, path: Path, **fields: Any
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    context = make_context(source(path, **fields), {"source": path})
    facts = PromptsStep().run(context)
    context.output.finish(**facts)
    artifact = Artifact(context.output.path)
    return artifact.read("prompts").to_pylist(), artifact.read("dropped").to_pylist(), facts


def lines(tmp_path: Path, *rows: Any) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_jsonl(make_context: Any, tmp_path: Path) -> None:
    kept, dropped, _ = read(make_context, lines(tmp_path, GOOD, {**GOOD, "uuid": 2, "input": "2+3?", "answer": 5}))
    assert kept == [GOOD, {**GOOD, "uuid": "2", "input": "2+3?", "answer": "5"}]
    assert dropped == []


def test_parquet_and_other_column_names(make_context: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"question": ["a?", "b?"], "gold": ["1", None]}), path)
    columns = {"input": "question", "answer": "gold", "uuid": None, "domain": None}
    kept, _, _ = read(make_context, path, columns=columns)
    assert [(row["input"], row["answer"], row["domain"]) for row in kept] == [("a?", "1", None), ("b?", None, None)]
    assert len({row["uuid"] for row in kept}) == 2


def test_dataset_name(make_context: Any, tmp_path: Path) -> None:
    """`datasets` reads a folder by name as it reads the hub."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(GOOD) + "\n")
    config = PromptsStepConfig(source=PromptSource(dataset=str(tmp_path / "data")))
    context = make_context(config)
    assert PromptsStep().run(context)["counts"] == {"prompts": 1}


def test_unknown_dataset(make_context: Any, tmp_path: Path) -> None:
    config = PromptsStepConfig(source=PromptSource(dataset=str(tmp_path / "absent")))
    with pytest.raises(UserError, match="can't be loaded"):
        PromptsStep().run(make_context(config))


def test_limit(make_context: Any, tmp_path: Path) -> None:
    kept, _, _ = read(
        make_context, lines(tmp_path, *({**GOOD, "uuid": n, "input": f"2+{n}?"} for n in range(9))), limit=3
    )
    assert [row["uuid"] for row in kept] == ["0", "1", "2"]


BAD = [
    ("{", "malformed_json", "not valid JSON"),
    ("", "empty_line", "the line is empty"),
    ("[1]", "malformed_json", "one JSON object"),
    ({**GOOD, "uuid": "2", "input": " "}, "no_input", "column 'input' is missing or empty"),
    ({"uuid": "2"}, "no_input", "column 'input' is missing or empty"),
    ({**GOOD, "uuid": "2", "answer": ["4"]}, "bad_answer", "column 'answer' holds list"),
    (GOOD, "duplicate_uuid", "uuid '1' stands at"),
    ('{"input": "\\ud800"}', "invalid_unicode", "half a character"),
    ("[" * 100_000, "malformed_json", "nested too deeply"),
]


@pytest.mark.parametrize(("row", "reason", "message"), BAD)
def test_bad_row_is_an_error_with_its_line(
    make_context: Any, tmp_path: Path, row: Any, reason: str, message: str
) -> None:
    path = lines(tmp_path, GOOD, row)
    with pytest.raises(UserError) as caught:
        read(make_context, path)
    assert f"{path}: line 2: " in str(caught.value)
    assert message in str(caught.value)
    assert "bad_rows=drop" in str(caught.value)


@pytest.mark.parametrize(("row", "reason", "message"), BAD)
def test_bad_row_is_dropped_and_counted(make_context: Any, tmp_path: Path, row: Any, reason: str, message: str) -> None:
    path = lines(tmp_path, GOOD, row, {**GOOD, "uuid": "3", "input": "2+3?"})
    kept, dropped, facts = read(make_context, path, bad_rows="drop")
    assert [row["uuid"] for row in kept] == ["1", "3"]
    assert facts["dropped"] == {reason: 1}
    assert dropped[0]["place"] == f"{path}: line 2"


def test_bytes_that_are_no_text(make_context: Any, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"input": "\xff"}\n')
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        read(make_context, path)


def test_no_prompt_at_all(make_context: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable prompt"):
        read(make_context, lines(tmp_path, "{"), bad_rows="drop")


def test_damaged_parquet(make_context: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="can't be read as Parquet"):
        read(make_context, path)


def test_held_out_problems_are_never_learned(make_context: Any, tmp_path: Path) -> None:
    held_out = benchmark(make_context, lines(tmp_path, GOOD))
    path = lines(tmp_path, {**GOOD, "uuid": "9"}, {**GOOD, "uuid": "3", "input": "3+3?"})
    context = make_context(source(path), {"source": path, "held_out_test": held_out}, name="train")
    facts = PromptsStep().run(context)
    assert (facts["counts"], facts["dropped"]) == ({"prompts": 1}, {"held_out": 1})


# The first is long enough to be found in another, the second only whole.
HELD_OUT = [
    "Every morning Aya goes for a 9-kilometer-long walk and stops at a coffee shop afterwards. Find the number of minutes.",
    "Find x if x + 3 = 7.",
    "求满足条件的所有正整数的和，其中每个数都小于一百。",
]


@pytest.mark.parametrize(
    ("text", "reason", "match"),
    [
        (HELD_OUT[0] + " ", "held_out", "0: "),
        ("Find $x$ if $x+3=7$", "held_out", "1: "),
        ("Find x if x + 3 = 7.5", None, ""),
        ("请解答：" + HELD_OUT[2].replace("，", "、"), "held_out_overlap", "2: "),
        (HELD_OUT[0].upper(), "held_out", "0: "),
        (HELD_OUT[0].replace(" ", "\n"), "held_out", "0: "),
        (HELD_OUT[0].replace("9", "\uff19"), "held_out", "0: "),  # a digit of double width
        (
            "Solve this. " + HELD_OUT[0],
            "held_out_overlap",
            "0: every morning aya goes for a 9 kilometer long walk and stops at",
        ),
        (HELD_OUT[0].replace(". Find", "; then she swims. Find"), "held_out_overlap", "0: every morning"),
        ("find X if x+3=7 .", "held_out", "1: "),
        ("Solve: " + HELD_OUT[1], None, ""),  # too short to be told from other problems
        ("Find x if x - 3 = 7.", None, ""),
        ("Every evening Aya goes for a walk and stops at a coffee shop. Find the number of minutes.", None, ""),
        ("3+3?", None, ""),
        ("3 + 4 ?", "duplicate_input", "line 1"),
        ("3*4?", None, ""),
    ],
)
def test_held_out_and_repeated_problems_are_dropped(
    make_context: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str | None, match: str
) -> None:
    """However they are written; what they share, and with which, stays readable."""
    problems = lines(tmp_path, *({"uuid": n, "input": held, "answer": "1"} for n, held in enumerate(HELD_OUT)))
    held_out = benchmark(make_context, problems)
    capsys.readouterr()
    path = lines(tmp_path, {**GOOD, "input": "3+4?"}, {**GOOD, "uuid": "2", "input": text})
    context = make_context(source(path), {"source": path, "held_out_test": held_out}, name="train")
    facts = PromptsStep().run(context)
    context.output.finish(**facts)
    assert facts["dropped"] == ({} if reason is None else {reason: 1})
    for row in Artifact(context.output.path).rows("dropped"):
        assert row["content"] == text
        assert match in row["match"]
    said = capsys.readouterr().err
    assert said.startswith(f"train: 1 prompts; dropped: {reason} 1 (see ") if reason else not said


def test_instructions_that_held_out_problems_share_are_no_problem() -> None:
    instruction = (
        " Please reason step by step, explain all that you do, and put your final answer within \\boxed{} at last."
    )
    problems = [f"What is {n} times the number of primes below {n * 10}?" for n in range(9)]
    held_out = HeldOutProblems((str(n), problem + instruction) for n, problem in enumerate(problems))
    assert held_out.match("How many legs have 12 spiders and 7 ants together?" + instruction) is None
    assert held_out.match("What is 7 times the number of primes below 70?" + instruction) is not None


def test_a_problem_that_is_held_out_three_times_is_held_out() -> None:
    held_out = HeldOutProblems((str(n), HELD_OUT[0]) for n in range(3))
    assert held_out.match("Solve: " + HELD_OUT[0]) is not None


def test_answers_that_a_setting_wants(make_context: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path, GOOD, {"uuid": "2", "input": "3+3?"})
    settings = source(path).model_copy(update={"answers_wanted_by": "filters.right_answers_only"})
    PromptsStep().run(make_context(settings, {"source": path}))
    assert "prompts.train: 1 of 2 problems have a reference answer" in capsys.readouterr().err
    path = lines(tmp_path, {"uuid": "2", "input": "3+3?"})
    with pytest.raises(UserError, match=r"right_answers_only=true, but none of the 1 problems has a reference answer"):
        PromptsStep().run(make_context(settings, {"source": path}))


def test_domains_of_budgets(make_context: Any, tmp_path: Path) -> None:
    path = lines(tmp_path, GOOD, {**GOOD, "uuid": "2", "input": "2+3?", "domain": None})
    settings = source(path).model_copy(update={"budgets": {"stages.0.selection.total": ["maths"]}})
    message = r"stages\.0\.selection\.total\.maths: no problem of prompts\.train is of that domain \(there are: math 1, none 1\)"
    with pytest.raises(UserError, match=message):
        PromptsStep().run(make_context(settings, {"source": path}))


def test_problems_with_control_tokens_are_dropped(make_context: Any, tmp_path: Path) -> None:
    """The teacher would read `<|return|>` as the end of its turn."""
    held_out = benchmark(make_context, lines(tmp_path, GOOD))
    path = lines(tmp_path, {**GOOD, "input": "3*4?<|return|>"}, {**GOOD, "uuid": "2", "input": "3*4?|return|"})
    inputs = {"source": path, "held_out_test": held_out, "teacher": TOY / "teacher"}
    students = {"source": path, "held_out_test": held_out, "student": TOY / "teacher" / "tokenizer.json"}
    assert PromptsStep().run(make_context(source(path), students, name="other"))["dropped"] == {"control_token": 1}
    context = make_context(source(path), inputs, name="train")
    facts = PromptsStep().run(context)
    context.output.finish(**facts)
    assert (facts["counts"], facts["dropped"]) == ({"prompts": 1}, {"control_token": 1})
    assert [row["match"] for row in Artifact(context.output.path).rows("dropped")] == ["<|return|>"]


def test_byte_order_mark(make_context: Any, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n")
    assert read(make_context, path)[0] == [GOOD]
