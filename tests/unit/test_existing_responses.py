"""Responses that exist already: in the schema of the paper's authors, in one's own, and broken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.responses import LogprobSource, ResponseSource
from dasd_megatron.evaluation.benchmark_step import PROBLEMS
from dasd_megatron.sampling.existing_responses import ResponsesConfig, ResponsesStep
from dasd_megatron.sampling.response_prompts import ResponsePromptsConfig, ResponsePromptsStep
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.errors import UserError
from tests.conftest import TOY

KEY = "stages.0.responses"
# Two responses to the first problem, one to the others.
ANSWERS = [
    ("3*4+1?", "3*4=2;2+1=3;", "3"),
    ("2+4?", "2+4=6;", "6"),
    ("3*4+1?", "3*4=3!3*4=2;2+1=3;", "3"),
    ("1+1?", "1+1=2;", "2"),
]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


class Release:
    """Rows in the schema of the paper's authors, log-probabilities in another order, and the steps that read them."""

    def __init__(self, tokenizer: ChatTokenizer, folder: Path, make_context: Any) -> None:
        self.folder, self._make_context = folder, make_context
        self.texts: list[dict[str, Any]] = []
        self.logprobs: list[dict[str, Any]] = []
        for number, (problem, reasoning, answer) in enumerate(ANSWERS):
            text = f"<think>{reasoning}</think>{answer}"
            ids = [*tokenizer.encode(text), tokenizer.end_of_turn_id]
            uuid = f"id-{number}"
            self.texts.append({"uuid": uuid, "input": problem, "output": text, "domain": "math", "meta": "{}"})
            self.logprobs.append(
                {"sample_uuid": uuid, "token_ids": ids, "logprobs": [-0.1 * (n + 1) for n in range(len(ids))]}
            )
        held_out = ArtifactWriter(folder / "held_out", {"step": "benchmark_test"})
        held_out.write_shard("prompts", 0, pa.Table.from_pylist([{"uuid": "t", "statement": "9*9?"}], PROBLEMS))
        held_out.finish(counts={"prompts": 1})

    def source(self, **settings: Any) -> tuple[ResponseSource, dict[str, Path]]:
        """The rows as files."""
        texts, logprobs = self.folder / "texts.jsonl", self.folder / "logprobs.parquet"
        texts.write_text("".join(json.dumps(row) + "\n" for row in self.texts))
        pq.write_table(pa.Table.from_pylist(self.logprobs[::-1]), logprobs)
        return ResponseSource(path=texts, logprobs=LogprobSource(path=logprobs), **settings), {
            "source": texts,
            "logprobs": logprobs,
        }

    def read(
        self, source: ResponseSource, inputs: Mapping[str, Path], **settings: Any
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Runs both steps; returns responses, and dropped rows by reason."""
        models = {"held_out_test": self.folder / "held_out", "teacher": TOY / "teacher", "student": TOY / "student"}
        first = self._make_context(ResponsePromptsConfig(source=source, key=KEY), {**inputs, **models}, "prompts")
        facts = ResponsePromptsStep().run(first)
        first.output.finish(**facts)
        config = ResponsesConfig(
            model=ModelConfig(model=TOY / "teacher"),
            source=source,
            key=KEY,
            temperature=0.6,
            limit=None,
            max_tokens=64,
            prompts_per_shard=2,
            **settings,
        )
        prompts = {"prompts": first.output.path, "model": TOY / "teacher"}
        second = self._make_context(config, {**inputs, **prompts}, "responses")
        found = ResponsesStep().run(second)
        second.output.finish(**found)
        rows = Artifact(second.output.path).read("responses").to_pylist()
        return rows, {**facts["dropped"], **found["dropped"]}


@pytest.fixture
def release(teacher_tokenizer: ChatTokenizer, tmp_path: Path, make_context: Any) -> Release:
    return Release(teacher_tokenizer, tmp_path, make_context)


def test_a_release_becomes_what_sampling_writes(release: Release, teacher_tokenizer: ChatTokenizer) -> None:
    rows, dropped = release.read(*release.source())
    assert dropped == {}
    # A problem's responses come one after another.
    order = [0, 2, 1, 3]
    assert [row["input"] for row in rows] == [ANSWERS[number][0] for number in order]
    assert [row["sample_index"] for row in rows] == [0, 1, 0, 0]
    assert rows[0]["uuid"] == rows[1]["uuid"]
    for row, number in zip(rows, order, strict=True):
        assert row["token_ids"] == release.logprobs[number]["token_ids"]
        assert row["logprobs"] == pytest.approx(release.logprobs[number]["logprobs"])
        assert row["prompt_ids"] == teacher_tokenizer.prompt_ids(row["input"])
        assert row["prefix_ids"] == []
        assert (row["tokens"], row["finish_reason"], row["domain"]) == (len(row["token_ids"]), "stop", "math")


def test_own_columns_in_one_file(release: Release, tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    rows = [
        {"question": text["input"], "ids": found["token_ids"], "lp": found["logprobs"], "gold": str(number)}
        for number, (text, found) in enumerate(zip(release.texts, release.logprobs, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    columns = {
        "uuid": None,
        "input": "question",
        "output": None,
        "token_ids": "ids",
        "logprobs": "lp",
        "answer": "gold",
    }
    found, dropped = release.read(ResponseSource(path=path, columns=columns), {"source": path})
    assert dropped == {}
    assert [row["token_ids"] for row in found] == [release.logprobs[number]["token_ids"] for number in (0, 2, 1, 3)]
    assert [row["answer"] for row in found] == ["0", "0", "1", "3"]  # a problem's first
    assert {row["domain"] for row in found} == {None}


def test_a_data_set_by_name(release: Release, tmp_path: Path) -> None:
    """`datasets` reads a folder by name as it reads the hub."""
    source, inputs = release.source()
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_bytes(inputs["source"].read_bytes())
    named = ResponseSource(dataset=str(folder), logprobs=source.logprobs, limit=2)
    rows, _ = release.read(named, {"logprobs": inputs["logprobs"]})
    assert [row["input"] for row in rows] == ["3*4+1?", "2+4?"]


def test_held_out_problems_are_not_learned_from(release: Release) -> None:
    release.texts[1]["input"] = "9 * 9 ?"
    rows, dropped = release.read(*release.source())
    assert dropped == {"held_out": 1}
    assert len(rows) == 3


def test_rows_whose_ids_spell_another_text_are_dropped(release: Release) -> None:
    release.texts[3]["output"] = "<think>1+1=3;</think>3"
    rows, dropped = release.read(*release.source())
    assert dropped == {"ids_and_text_differ": 1}
    assert len(rows) == 3
    table = Artifact(release.folder / "responses").read("dropped").to_pylist()
    assert table[0]["place"].endswith("texts.jsonl: row 4")
    assert (table[0]["input"], table[0]["text"]) == ("1+1?", release.texts[3]["output"])
    assert table[0]["spelled"].startswith("<think>1+1=2;</think>2")


@pytest.mark.parametrize(
    ("text", "logprobs", "message", "reason"),
    [
        ({"input": ""}, {}, rf"row 4: column 'input' is missing or empty; .* in {KEY}\.columns\.input", "no_input"),
        ({}, {"token_ids": [5, 7.5], "logprobs": [-1.0, -1.0]}, "row 1: its token ids aren't whole", "bad_token_ids"),
        ({"input": "a", "uuid": "id-0"}, {}, r"row 4: uuid 'id-0' stands at .* row 1 already", "duplicate_uuid"),
        ({"uuid": "other"}, {}, rf"row 4: uuid 'other' has no row in {KEY}\.logprobs", "no_logprobs"),
        ({"uuid": None}, {}, r"row 4: there is no uuid to find its log-probabilities by", "no_uuid"),
        (
            {},
            {"logprobs": [-1.0]},
            r"logprobs.parquet: row 1: it has \d+ token ids and 1 log-probabilities",
            "other_length",
        ),
        (
            {},
            {"token_ids": [5, 999], "logprobs": [-1.0, -1.0]},
            "parquet: row 1: token id 999 is beyond the",
            "unknown_token",
        ),
        (
            {},
            {"token_ids": [5, -1], "logprobs": [-1.0, -1.0]},
            "parquet: row 1: token id -1 is beyond the",
            "unknown_token",
        ),
        (
            {},
            {"token_ids": [5, 6], "logprobs": [-1.0, 2.0]},
            "parquet: row 1: a log-probability is above 0",
            "bad_logprobs",
        ),
        (
            {},
            {"logprobs": None},
            "logprobs.parquet: row 1: it has no token ids, or no log-probabilities",
            "no_token_ids",
        ),
        ({}, {"token_ids": [], "logprobs": []}, "logprobs.parquet: row 1: it has no token ids", "no_token_ids"),
    ],
)
def test_bad_rows(
    release: Release, text: Mapping[str, Any], logprobs: Mapping[str, Any], message: str, reason: str
) -> None:
    release.texts[3].update(text)
    release.logprobs[3].update(logprobs)
    with pytest.raises(UserError, match=rf"{message}.*set {KEY}\.bad_rows=drop to drop such rows"):
        release.read(*release.source())
    rows, dropped = release.read(*release.source(bad_rows="drop"))
    assert dropped == {reason: 1}
    assert len(rows) == 3


def test_token_ids_as_text(release: Release) -> None:
    for row in release.logprobs:
        row["token_ids"] = list(map(str, row["token_ids"]))
    with pytest.raises(UserError, match=r"its token ids aren't whole numbers"):
        release.read(*release.source())


def test_log_probabilities_given_twice(release: Release, capfd: pytest.CaptureFixture[str]) -> None:
    """The rows of the file are in another order: the first of two is what was added here."""
    release.logprobs.append({**release.logprobs[0], "logprobs": [-9.0] * len(release.logprobs[0]["logprobs"])})
    with pytest.raises(UserError, match=r"logprobs\.parquet: row 5: uuid 'id-0' stands at .*parquet: row 1 already"):
        release.read(*release.source())
    rows, dropped = release.read(*release.source(bad_rows="drop"))
    assert dropped == {"duplicate_uuid": 1}
    assert rows[0]["logprobs"][0] == -9.0
    assert "dropped: duplicate_uuid 1" in capfd.readouterr().err


def test_what_is_dropped_is_said(release: Release, capfd: pytest.CaptureFixture[str]) -> None:
    release.texts[3]["output"] = "<think>1+1=3;</think>3"
    release.read(*release.source())
    assert "responses: dropped: ids_and_text_differ 1 (see " in capfd.readouterr().err


def test_files_of_another_schema(release: Release, tmp_path: Path) -> None:
    source, inputs = release.source()
    texts, logprobs = inputs["source"], inputs["logprobs"]
    cases: list[tuple[ResponseSource, str]] = [
        (
            ResponseSource(path=texts),
            rf"no column 'token_ids' \(it has: uuid, input, output, domain, meta\); .* {KEY}\.columns\.token_ids",
        ),
        (
            ResponseSource(path=logprobs, logprobs=source.logprobs),
            r"no column 'uuid' \(it has: sample_uuid, token_ids, logprobs\)",
        ),
        (
            ResponseSource(path=texts, logprobs=LogprobSource(path=texts)),
            rf"no column 'sample_uuid' .* {KEY}\.logprobs\.columns\.uuid",
        ),
    ]
    for asked, message in cases:
        paths = {"source": asked.path, "logprobs": asked.logprobs and asked.logprobs.path}
        with pytest.raises(UserError, match=message):
            release.read(asked, {name: path for name, path in paths.items() if path is not None})
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl: the file is empty"):
        release.read(ResponseSource(path=empty), {"source": empty})
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"uuid": "1", "input": \n')
    with pytest.raises(UserError, match=r"broken\.jsonl: can't be loaded: "):
        release.read(ResponseSource(path=broken), {"source": broken})


def test_nothing_usable_says_why(release: Release) -> None:
    for row in release.texts:
        row["output"] = "<think>another</think>text"
    with pytest.raises(UserError, match=r"not one response is usable \(dropped: {'ids_and_text_differ': 4}\)"):
        release.read(*release.source())
