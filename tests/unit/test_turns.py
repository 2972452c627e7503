"""Responses that teacher and student write in turns."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.sampling import EngineConfig, SamplingConfig
from dasd_megatron.config.stages import MixedPolicyConfig, TurnsConfig
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.sampling.engines.engine import Request, Sample, generate_all
from dasd_megatron.sampling.engines.engine_process import EngineProcess
from dasd_megatron.sampling.engines.registry import load_engine
from dasd_megatron.sampling.turn_boundaries import (
    SEEN_TOKENS,
    Boundary,
    SentenceBoundaries,
    TokenClassifier,
    Writer,
    labeled_boundary,
)
from dasd_megatron.sampling.turn_writer import Limits, Party, TurnWriter
from dasd_megatron.sampling.turns import TurnsStep, TurnsStepConfig
from dasd_megatron.tokenization.response_format import response_format
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.child_process import start_of_process
from dasd_megatron.utils.errors import UserError
from tests.conftest import TOY

ENGINE = EngineConfig(name="transformers", dtype="float32")
SENTENCE_END = Recipe.model_fields["sentence_end"].default
PROBLEMS = ["3*4+1?", "2*5-3?", "7-2*2?"]


def turns_config(student: str, teacher: str, temperature: float, **changes: Any) -> TurnsStepConfig:
    settings: dict[str, Any] = {
        "engine": ENGINE,
        "student_engine": ENGINE,
        "model": ModelConfig(model=TOY / teacher),
        "student": ModelConfig(model=TOY / student),
        "sampling": SamplingConfig(max_tokens=96),
        "turns": TurnsConfig(student_tokens=3, teacher_tokens=4),
        "prompts": None,
        "temperature": temperature,
        "sentence_end": "[;!]",
        "context_length": 256,
        "max_length": None,
        "seed": 0,
    }
    return TurnsStepConfig(**{**settings, **changes})


def selected(folder: Path) -> Path:
    """Prompts that were answered."""
    rows = [
        {"uuid": f"u{n}", "sample_index": 0, "input": text, "domain": None, "answer": None, "student_tokens": 40}
        for n, text in enumerate(PROBLEMS)
    ]
    writer = ArtifactWriter(folder, {})
    writer.write_shard("responses", 0, pa.Table.from_pylist(rows))
    writer.finish(counts={"responses": len(rows)})
    return writer.path


def written(make_context: Any, tmp_path: Path, config: TurnsStepConfig) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    inputs = {
        "responses": selected(tmp_path / "selected"),
        "model": config.model.model,
        "student": config.student.model,
    }
    context = make_context(config, inputs)
    facts = TurnsStep().run(context)
    context.output.finish(**facts)
    return facts, list(Artifact(context.output.path).rows("responses"))


def test_both_write_and_the_text_is_what_the_ids_say(make_context: Any, tmp_path: Path) -> None:
    facts, rows = written(make_context, tmp_path, turns_config("student", "teacher", 1.0))
    student = ChatTokenizer(TOY / "student")
    assert 0.2 < facts["written_by_teacher"] < 1
    assert sorted(row["uuid"] for row in rows) == ["u0", "u1", "u2"]
    for row in rows:
        stopped = row["finish_reason"] == "stop"
        parsed = response_format("think", student).parse(row["prompt_ids"], [], row["token_ids"], stopped)
        assert parsed.text == row["text"]
        assert sum(row["turn_bytes"]) == len(row["text"].encode())
        assert row["tokens"] == len(row["token_ids"]) <= 97
        assert not stopped or parsed.problem is None


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_one_model_in_turns_with_itself_writes_what_it_writes_alone(
    make_context: Any, tmp_path: Path, model: str
) -> None:
    """Greedy: wherever turns end, nothing is lost, repeated or told to the other in other tokens."""
    _, rows = written(make_context, tmp_path, turns_config(model, model, 0.0))
    tokenizer = ChatTokenizer(TOY / model)
    requests = [Request(tokenizer.prompt_ids(row["input"]), 0, 96, 0.0, 1.0, tokenizer.stop_ids) for row in rows]
    samples = generate_all(load_engine(TOY / model, ENGINE), requests)
    assert len(rows) == 3
    for row, sample in zip(rows, samples, strict=True):
        assert len(row["turn_bytes"]) > 2
        assert row["finish_reason"] == sample.finish_reason
        assert row["token_ids"] == sample.token_ids.tolist()


def test_responses_end_where_a_document_would(make_context: Any, tmp_path: Path) -> None:
    _, rows = written(make_context, tmp_path, turns_config("student", "teacher", 1.0, context_length=20))
    assert "length" in {row["finish_reason"] for row in rows}
    for row in rows:
        # The last turn of the teacher, of at most 4 of its tokens, may take a few more of the student's; `filter` counts those.
        assert len(row["prompt_ids"]) + row["tokens"] <= 20 + 6


@pytest.mark.parametrize(
    ("writer", "text", "boundary"),
    [
        ("student", "Okay, so the fir", Boundary(len("Okay, so the"), "teacher")),
        ("student", "Okay, so the ", Boundary(len("Okay, so the"), "teacher")),
        ("student", "Wait. Then", Boundary(len("Wait."), "teacher")),
        ("student", "So x =", Boundary(len("So x"), "teacher")),
        ("student", "Wavelength", Boundary(len("Wavelength"), "teacher")),
        ("student", "\nSo we", Boundary(len("\nSo"), "teacher")),
        ("teacher", " first factor is 3", Boundary(len(" first factor is 3"), "teacher")),
        ("teacher", " factor is 3.\nNow the", Boundary(len(" factor is 3.\n"), "student")),
        ("teacher", " factor is 3.  Now the", Boundary(len(" factor is 3."), "student")),
        ("teacher", " factor is 3.", Boundary(len(" factor is 3."), "student")),  # where the turn ends, too
    ],
)
def test_the_student_opens_sentences_and_the_teacher_ends_them(writer: Writer, text: str, boundary: Boundary) -> None:
    assert SentenceBoundaries(SENTENCE_END).of(writer, ["<think>\n"], [text]) == [boundary]


# "Okay " comes before; then tokens of "let me compute 3*4 now": let, me, compute, 3, *4, now
OWN = [(5, 8), (8, 11), (11, 19), (19, 21), (21, 23), (23, 27)]


@pytest.mark.parametrize(
    ("writer", "labels", "boundary"),
    [
        ("student", [1, 1, 0, 0, 0, 1], Boundary(len("let me compute"), "teacher")),
        ("student", [1, 1, 1, 0, 0, 1], Boundary(len("let me compute 3*4"), "teacher")),  # a word is whole
        ("student", [0, 1, 1, 1, 1, 1], Boundary(len("let me compute 3*4 now"), "student")),  # the first never ends it
        ("teacher", [0, 0, 0, 0, 0, 0], Boundary(len("let me compute 3*4 now"), "teacher")),
        ("teacher", [0, 0, 0, 0, 0, 1], Boundary(len("let me compute 3*4 now"), "student")),
    ],
)
def test_turns_end_with_the_first_token_of_the_others_kind(
    writer: Writer, labels: list[int], boundary: Boundary
) -> None:
    tokens = [(0, 5, 0), *((start, end, label) for (start, end), label in zip(OWN, labels, strict=True))]
    assert labeled_boundary(writer, 5, "let me compute 3*4 now", tokens) == boundary


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token classifier of random weights that has the toy's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = AutoTokenizer.from_pretrained(TOY / "teacher")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("qwen3", vocab_size=len(tokenizer), num_key_value_heads=2, head_dim=16, **sizes)
    torch.manual_seed(0)
    AutoModelForTokenClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_predictor_labels_the_last_tokens(classifier: Path) -> None:
    texts = ["3*4=12;" * 200, "3*4"]
    long, short = TokenClassifier(classifier).labels(texts)
    assert len(long) == SEEN_TOKENS
    assert [short[0][0], short[-1][1], long[-1][1]] == [0, 3, len(texts[0])]
    (alone,) = TokenClassifier(classifier).labels(["3*4"])
    assert alone == short  # padding changes nothing
    assert {label for _, _, label in long} <= {0, 1}


def test_turns_by_predictors(make_context: Any, tmp_path: Path, classifier: Path) -> None:
    turns = TurnsConfig(boundary="predictor", student_predictor=classifier, teacher_predictor=classifier)
    config = turns_config("student", "teacher", 1.0, turns=turns)
    inputs = {
        "responses": selected(tmp_path / "selected"),
        "model": TOY / "teacher",
        "student": TOY / "student",
        "student_predictor": classifier,
        "teacher_predictor": classifier,
    }
    facts = TurnsStep().run(make_context(config, inputs))
    assert facts["counts"]["responses"] == 3


def test_a_predictor_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be loaded as a token classifier"):
        TokenClassifier(tmp_path)
    with pytest.raises(UserError, match=r"can't be loaded as a token classifier: it has no score\.bias, score\.weight"):
        TokenClassifier(TOY / "student")  # a language model: its labels would be random


def sample(ids: list[int], finish_reason: Literal["stop", "length"]) -> Sample:
    return Sample.of(ids, [0.0] * len(ids), finish_reason)


def test_a_harmony_teacher_that_ends_its_analysis_leaves_the_answer_to_the_student(
    qwen3: ChatTokenizer, gptoss: ChatTokenizer
) -> None:
    writer = TurnWriter(
        student=Party(qwen3, response_format("think", qwen3), 10),
        teacher=Party(gptoss, response_format("harmony", gptoss), 20),
        engines={},
        boundaries=SentenceBoundaries(SENTENCE_END),
        limits=Limits(1000, 2000),
        temperature=1.0,
        top_p=1.0,
        seed=0,
        most=1,
    )
    draft = writer.draft({"uuid": "u", "input": "2+2?"})
    first = qwen3.encode("<think>\nOkay, so we")
    writer.take("student", [draft], [sample(first, "length")])
    assert (draft.text, draft.writer) == ("<think>\nOkay, so", "teacher")
    draft.ids["teacher"] = writer.teacher.format.prefix_ids(draft.text, draft.prompt_ids["teacher"])
    second = gptoss.encode(" the sum of 2 and 2 is 4<|end|>")
    writer.take("teacher", [draft], [sample(second, "stop")])
    assert draft.text == "<think>\nOkay, so the sum of 2 and 2 is 4\n</think>"
    assert (draft.answering, draft.writer) == (True, "student")
    assert qwen3.decode_bytes(draft.ids["student"]).decode() == draft.text
    third = [*qwen3.encode("\n\n4"), qwen3.end_of_turn_id]
    writer.take("student", [draft], [sample(third, "stop")])
    assert (draft.text[-4:], draft.finish_reason) == (">\n\n4", "stop")
    assert draft.turn_bytes == [len("<think>\nOkay, so"), len(" the sum of 2 and 2 is 4\n</think>"), len("\n\n4")]


def test_half_a_character_is_left_to_the_next_turn(qwen3: ChatTokenizer) -> None:
    party = Party(qwen3, response_format("think", qwen3), 10)
    writer = TurnWriter(party, party, {}, SentenceBoundaries(SENTENCE_END), Limits(99, 99), 1.0, 1.0, 0, most=1)
    draft = writer.draft({"uuid": "u", "input": "?"})
    ids = qwen3.encode("<think>\nIt is 𒀀")[:-1]
    writer.take("student", [draft], [sample(ids, "length")])
    assert qwen3.decode_bytes(draft.ids["student"]).decode() == draft.text == "<think>\nIt is"


def test_an_engine_process_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none"):
        EngineProcess(tmp_path / "none", ENGINE)


@pytest.mark.parametrize("busy", [True, False])
def test_an_engine_process_that_is_killed_is_said(busy: bool) -> None:
    engine = EngineProcess(TOY / "student", ENGINE)
    if busy:  # the request is never read
        engine._process.send_signal(signal.SIGSTOP)
        engine.ask([Request([1], 0, 1, 1.0, 1.0, [])])
    engine._process.kill()
    engine._process.wait()
    if not busy:
        engine.ask([Request([1], 0, 1, 1.0, 1.0, [])])
    with pytest.raises(UserError, match=r"student: the engine's process ended \(exit code -9\); where memory ran out"):
        engine.ended()


def test_an_engine_process_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from dasd_megatron.config.sampling import EngineConfig\n"
        "from dasd_megatron.sampling.engines.engine_process import EngineProcess\n"
        "engine = EngineProcess(Path(sys.argv[1]), EngineConfig(name='transformers', dtype='float32'))\n"
        "print(engine._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(TOY / "student")], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 10
    while start_of_process(int(done.stdout)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_engine_process_gives_what_the_engine_gives() -> None:
    tokenizer = ChatTokenizer(TOY / "student")
    requests = [Request(tokenizer.prompt_ids(text), 7, 20, 1.0, 1.0, tokenizer.stop_ids) for text in PROBLEMS]
    process = EngineProcess(TOY / "student", ENGINE)
    found: dict[int, Sample] = {}
    process.ask(requests[:2])
    while len(found) < 2:
        found.update(process.ended())
    process.ask(requests[2:])  # it waited
    found.update(process.ended())
    for number, other in enumerate(generate_all(load_engine(TOY / "student", ENGINE), requests)):
        assert found[number].token_ids.tolist() == other.token_ids.tolist()
        np.testing.assert_allclose(found[number].logprobs, other.logprobs, atol=1e-5)


def test_a_recipe_with_turns_has_their_step() -> None:
    recipe = load_recipe(TOY / "recipe.yaml", ["mixed_policy.method=turns"])
    steps = build_steps(recipe)
    assert "turns_mixed_policy" in steps
    assert not {"rollout_mixed_policy", "continue_mixed_policy"} & set(steps)
    assert steps["filter_mixed_policy"].config.teacher == recipe.student


def test_what_turns_need() -> None:
    with pytest.raises(ValidationError, match="needs student_predictor and teacher_predictor"):
        TurnsConfig(boundary="predictor")
    with pytest.raises(ValidationError, match="mask_prefix=true needs method=continue"):
        MixedPolicyConfig(method="turns", mask_prefix=True)
    with pytest.raises(UserError, match=r"mixed_policy\.turns\.student_predictor: none: no such model folder"):
        build_steps(
            load_recipe(
                TOY / "recipe.yaml",
                [
                    "mixed_policy.method=turns",
                    "mixed_policy.turns={boundary: predictor, student_predictor: none, teacher_predictor: none}",
                ],
            )
        )
