"""What the teacher is asked to continue, and how far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.sampling import EngineConfig, SamplingConfig
from dasd_megatron.sampling.responses import RESPONSES
from dasd_megatron.sampling.student_rollout import answered_prompts
from dasd_megatron.sampling.teacher_continuation import ContinueConfig, ContinueStep, cut
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from tests.conftest import TOY


def answers(folder: Path, *texts: str) -> Path:
    """An artifact of student answers that were truncated."""
    student = ChatTokenizer(TOY / "student")
    rows = []
    for number, text in enumerate(texts):
        ids = student.encode(text)
        rows.append(
            {
                "uuid": f"u{number}",
                "sample_index": 0,
                "input": "3*4?",
                "prompt_ids": student.prompt_ids("3*4?"),
                "prefix_ids": [],
                "token_ids": ids,
                "logprobs": [-0.1] * len(ids),
                "tokens": len(ids),
                "finish_reason": "length",
                "text": text,
            }
        )
    writer = ArtifactWriter(folder, {})
    writer.write_shard("responses", 0, pa.Table.from_pylist(rows, RESPONSES))
    writer.finish(counts={"responses": len(rows)})
    return writer.path


@pytest.mark.parametrize("limit", ["context_length", "max_length"])
def test_continuations_end_where_a_document_would(make_context: Any, tmp_path: Path, limit: str) -> None:
    """Of a pack, or of what the engine takes; an answer that leaves no room is skipped, and counted."""
    longest = 48
    config = ContinueConfig(
        engine=EngineConfig(name="transformers", dtype="float32"),
        model=ModelConfig(model=TOY / "teacher"),
        student=ModelConfig(model=TOY / "student"),
        sampling=SamplingConfig(max_tokens=64),
        cut_after=0.5,
        keep="truncated",
        temperature=1.0,
        length_cap=1.5,
        grader="number",
        **{"context_length": 256, "max_length": 256, limit: longest},
        seed=0,
    )
    inputs = {
        "answers": answers(tmp_path / "answers", "<think>3*4=2;3*4=2;", "<think>" + "3*4=2;" * 30),
        "model": TOY / "teacher",
        "student": TOY / "student",
    }
    context = make_context(config, inputs)
    facts = ContinueStep().run(context)
    context.output.finish(**facts)
    assert facts["skipped"] == {"no_room": 1}
    (row,) = Artifact(context.output.path).rows("responses")
    assert row["uuid"] == "u0"
    assert row["max_tokens"] == longest - len(row["prompt_ids"]) - len(row["prefix_ids"])
    assert 0 < row["max_tokens"] < 64
    assert row["tokens"] <= row["max_tokens"]


def student_answer(student: ChatTokenizer, text: str, uuid: str, ids: list[int] | None = None) -> dict[str, Any]:
    ids = student.encode(text) if ids is None else ids
    return {"uuid": uuid, "token_ids": ids, "prompt_ids": student.prompt_ids("?"), "finish_reason": "length"}


def test_cuts_are_where_a_token_begins_for_both_models(qwen3: ChatTokenizer, gptoss: ChatTokenizer) -> None:
    """So the teacher's tokens of the prefix are those that it would have written, and none is half of one."""
    text = "<think>\n" + "".join(
        f"Wait: {n * n} * {n} = {n**3}, so 3.14159265 naïve 東京 wavelengths.\n" for n in range(60)
    )
    whole = gptoss.encode(text)
    distinct = set()
    for number in range(100):
        prefix = cut(student_answer(qwen3, text, f"u{number}"), qwen3, gptoss, 0.5, seed=0)
        assert len(text) * 0.45 < len(prefix) < len(text)
        for tokenizer, all_ids in ((qwen3, qwen3.encode(text)), (gptoss, whole)):
            ids = tokenizer.encode(prefix)
            assert ids == all_ids[: len(ids)]
        distinct.add(prefix)
    assert len(distinct) > 60


def test_an_answer_that_ends_within_a_character_is_cut_before_it(qwen3: ChatTokenizer, gptoss: ChatTokenizer) -> None:
    ids = qwen3.encode("<think>\nIt is so: 𒀀")[:-1]
    with pytest.raises(UnicodeDecodeError):
        qwen3.decode_bytes(ids).decode()
    for number in range(20):
        prefix = cut(student_answer(qwen3, "", f"u{number}", ids), qwen3, gptoss, 0.2, seed=0)
        assert "\ufffd" not in prefix
        assert prefix.startswith("<think>")


def test_a_finished_answer_is_cut_within_its_reasoning(qwen3: ChatTokenizer, gptoss: ChatTokenizer) -> None:
    ids = [
        *qwen3.encode("<think>\n" + "One more step. " * 20 + "\n</think>\n\n" + "The answer. " * 50),
        qwen3.end_of_turn_id,
    ]
    answer = {**student_answer(qwen3, "", "u", ids), "finish_reason": "stop"}
    for number in range(20):
        prefix = cut({**answer, "uuid": f"u{number}"}, qwen3, gptoss, 0.5, seed=0)
        assert 150 < len(prefix) < 320
        assert "answer" not in prefix


def test_where_no_token_begins_for_both_there_is_no_cut(qwen3: ChatTokenizer, gptoss: ChatTokenizer) -> None:
    assert cut(student_answer(qwen3, "Hi", "u"), qwen3, gptoss, 0.5, seed=0) == ""


def test_prompts_to_answer_are_read_without_the_responses(tmp_path: Path) -> None:
    """330,000 responses of 17,600 tokens would take 156 GB: of each its length counts alone."""
    columns = {"input": "?", "domain": None, "answer": None, "student_tokens": 7}
    rows = [{"uuid": f"u{n // 2}", "sample_index": n % 2, **columns} for n in range(20)]  # and nothing else
    writer = ArtifactWriter(tmp_path / "selected", {})
    writer.write_shard("responses", 0, pa.Table.from_pylist(rows))
    writer.finish(counts={"responses": len(rows)})
    prompts = answered_prompts(Artifact(writer.path), 6, seed=0)
    assert len({prompt["uuid"] for prompt in prompts}) == len(prompts) == 6
    assert {prompt["student_tokens"] for prompt in prompts} == {7}
    assert prompts == answered_prompts(Artifact(writer.path), None, seed=0)[:6]
