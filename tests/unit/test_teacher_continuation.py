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
from dasd_megatron.sampling.teacher_continuation import ContinueConfig, ContinueStep
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
        cut_after=0.99,
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
