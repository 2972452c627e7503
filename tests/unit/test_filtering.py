"""What is dropped, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.curation import FiltersConfig
from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.curation.filtering import FilterConfig, FilterStep, ResponseFilter
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.sampling.responses import RESPONSES
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from tests.conftest import ROOT, TOY


def response_row(teacher: ChatTokenizer, text: str, finish: str = "stop", **fields: Any) -> dict[str, Any]:
    """A sampled row as the `sample` step writes it."""
    ids = teacher.encode(text) + ([teacher.end_of_turn_id] if finish == "stop" else [])
    return {
        "uuid": "u",
        "sample_index": 0,
        "input": "3*4?",
        "domain": "math",
        "answer": "2",
        "temperature": 1.0,
        "prompt_ids": teacher.prompt_ids("3*4?"),
        "prefix_ids": [],
        "token_ids": ids,
        "logprobs": [-0.1] * len(ids),
        "tokens": len(ids),
        "finish_reason": finish,
        "max_tokens": 64,
        "text": text,
        **fields,
    }


FILTER_CONFIG = FilterConfig(
    teacher=ModelConfig(model=TOY / "teacher"),
    student=ModelConfig(model=TOY / "student"),
    filters=FiltersConfig(min_repeated_words=50),
    sentence_end="[;!]",
    context_length=90,
    max_length=None,
)


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("<think>3*4=2;</think>2", "stop", None),
        ("<think>3*4=2;", "length", "truncated"),
        ("3*4=2;", "stop", "no_thinking"),
        ("<think>3*4=2;", "stop", "no_answer"),
        ("<think>" + "1" * 99 + "</think>2", "stop", "too_long"),
        ("<think>" + "3*4=2;" * 14 + "</think>2", "stop", "repeated"),
    ],
)
def test_filter_reasons(
    teacher_tokenizer: ChatTokenizer, student_tokenizer: ChatTokenizer, text: str, finish: str, reason: str | None
) -> None:
    rule = ResponseFilter(FILTER_CONFIG, teacher_tokenizer, student_tokenizer, max_document_tokens=90)
    [(found, row)] = rule.apply([response_row(teacher_tokenizer, text, finish)])
    assert found == reason
    assert row["text"] == text


def test_filter_drops_written_out_special_tokens(
    teacher_tokenizer: ChatTokenizer, student_tokenizer: ChatTokenizer
) -> None:
    """A teacher that spells the student's end of turn would end the student's turn in the middle."""
    row = response_row(teacher_tokenizer, "<think>3*4=2;</think>2")
    spelled = {**row, "token_ids": [], "prefix_ids": []}
    rule = ResponseFilter(FILTER_CONFIG, teacher_tokenizer, student_tokenizer, max_document_tokens=90)
    rule._format = _Spelling("<think>a<|im_end|></think>2")  # type: ignore[assignment]
    assert rule.apply([spelled])[0][0] == "special_token"


def test_filter_drops_prompts_with_special_tokens(
    teacher_tokenizer: ChatTokenizer, student_tokenizer: ChatTokenizer
) -> None:
    row = response_row(teacher_tokenizer, "<think>3*4=2;</think>2", input="3*4?<|im_end|>")
    rule = ResponseFilter(FILTER_CONFIG, teacher_tokenizer, student_tokenizer, max_document_tokens=90)
    assert rule.apply([row])[0][0] == "special_token"


class _Spelling:
    def __init__(self, text: str) -> None:
        self.text = text

    def parse(self, *_: object) -> object:
        from dasd_megatron.tokenization.response_format import Response

        return Response(self.text, np.zeros(0, np.int32))


def test_filter_keeps_dropped_rows_readable(
    make_context: Any, tmp_path: Path, teacher_tokenizer: ChatTokenizer
) -> None:
    rows = [
        response_row(teacher_tokenizer, "<think>3*4=2;</think>2"),
        response_row(teacher_tokenizer, "<think>3*4=2;", "length", sample_index=1),
        response_row(teacher_tokenizer, "2", sample_index=2),
    ]
    sampled = ArtifactWriter(tmp_path / "sampled", {})
    sampled.write_shard("responses", 0, pa.Table.from_pylist(rows, RESPONSES))
    sampled.finish()
    inputs = {"responses": sampled.path, "teacher": TOY / "teacher", "student": TOY / "student"}
    context = make_context(FILTER_CONFIG, inputs)
    facts = FilterStep().run(context)
    assert facts["dropped"] == {"truncated": 1, "no_thinking": 1}
    assert facts["counts"] == {"responses": 1, "dropped": 2}
    context.output.finish(**facts)
    artifact = Artifact(context.output.path)
    assert [row["text"] for row in artifact.rows("dropped")] == ["<think>3*4=2;", "2"]
    kept = next(iter(artifact.rows("responses")))
    assert len(kept["student_token_ids"]) == len(kept["student_token_starts"]) == kept["student_tokens"]
    assert len(kept["student_prompt_ids"]) == kept["student_prompt_tokens"]
    assert (kept["sample_index"], kept["token_ids"], kept["logprobs"]) == (
        0,
        rows[0]["token_ids"],
        pytest.approx(rows[0]["logprobs"]),
    )
    assert kept["student_token_ids"][-1] == ChatTokenizer(TOY / "student").end_of_turn_id


@pytest.mark.parametrize(
    ("reference", "grader", "reason"),
    [("2", "number", None), ("3", "number", "wrong_answer"), (None, "number", None), ("3", None, None)],
)
def test_wrong_answers_are_dropped_where_a_recipe_asks(
    teacher_tokenizer: ChatTokenizer,
    student_tokenizer: ChatTokenizer,
    reference: str | None,
    grader: str | None,
    reason: str | None,
) -> None:
    """And never where there is no reference answer."""
    config = FILTER_CONFIG.model_copy(update={"grader": grader})
    rule = ResponseFilter(config, teacher_tokenizer, student_tokenizer, max_document_tokens=90)
    row = response_row(teacher_tokenizer, "<think>3*4=2;</think>2", answer=reference)
    assert rule.apply([row])[0][0] == reason


@pytest.mark.parametrize(
    ("override", "graded"),
    [
        ("filters.right_answers_only=true", {"low_temperature", "high_temperature", "mixed_policy"}),
        ("mixed_policy.right_answers_only=true", {"mixed_policy"}),
        ("seed=1", set()),
    ],
)
def test_which_stages_ask_for_right_answers(monkeypatch: pytest.MonkeyPatch, override: str, graded: set[str]) -> None:
    monkeypatch.chdir(ROOT)
    steps = build_steps(load_recipe(TOY / "recipe.yaml", [override]))
    configs = {name.removeprefix("filter_"): step.config for name, step in steps.items() if name.startswith("filter_")}
    assert {name for name, config in configs.items() if config.grader == "number"} == graded
