"""Packs: full, whole, and trained on where they should be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.curation import packing
from dasd_megatron.curation.documents import DocumentIndex, read_documents
from dasd_megatron.curation.packing import PackStep, PackStepConfig, pack
from dasd_megatron.training.data import HeldOutPacks
from dasd_megatron.utils.errors import UserError


@given(st.lists(st.integers(1, 64), max_size=200))
def test_packs_hold_every_document_once_and_fit(lengths: list[int]) -> None:
    packs = pack(lengths, 64)
    assert sorted(index for group in packs for index in group) == list(range(len(lengths)))
    loads = [sum(lengths[index] for index in group) for group in packs]
    assert all(load <= 64 for load in loads)
    # Best fit: no two packs could have been one.
    assert len([load for load in loads if load <= 32]) <= 1


def test_packs_of_reasoning_lengths_are_full() -> None:
    """Log-normal lengths with the second moment of the paper's figure 8; windows as the step makes them."""
    random = np.random.default_rng(0)
    sigma = math.sqrt(math.log(1.8))
    lengths = random.lognormal(math.log(20_000) - sigma**2 / 2, sigma, 14_000).astype(np.int32)
    lengths = lengths[lengths <= 65_536]
    numbers = np.arange(len(lengths), dtype=np.int32)
    windows = DocumentIndex(numbers, numbers, numbers, lengths).windows(packing.WINDOW * 65_536)
    packs = [pack(window.length.tolist(), 65_536) for window in windows]
    assert len(windows) == 2
    assert lengths.sum() / (65_536 * sum(map(len, packs))) >= 0.999


def test_too_long_a_document_is_refused() -> None:
    with pytest.raises(UserError, match=r"65 tokens, more than packing\.context_length=64"):
        pack([65], 64)


# What packing reads of a filtered response.
PACKABLE = pa.schema(
    [
        ("uuid", pa.string()),
        ("sample_index", pa.int32()),
        ("prefix_bytes", pa.int32()),
        *((name, pa.list_(pa.int32())) for name in ("student_prompt_ids", "student_token_ids", "student_token_starts")),
        ("student_prompt_tokens", pa.int32()),
        ("student_tokens", pa.int32()),
    ]
)


def filtered_row(index: int, prompt: int, response: int, prefix_bytes: int = 0) -> dict[str, Any]:
    return {
        "uuid": f"u{index}",
        "sample_index": 0,
        "prefix_bytes": prefix_bytes,
        "student_prompt_ids": list(range(prompt)),
        "student_token_ids": list(range(100, 100 + response)),
        "student_token_starts": list(range(response)),
        "student_prompt_tokens": prompt,
        "student_tokens": response,
    }


def filtered(folder: Path, *shards: list[dict[str, Any]]) -> Artifact:
    writer = ArtifactWriter(folder, {})
    for shard, rows in enumerate(shards):
        writer.write_shard("responses", shard, pa.Table.from_pylist(rows, PACKABLE))
    writer.finish(counts={"responses": sum(map(len, shards))})
    return Artifact(folder)


def test_loss_falls_on_the_response_alone(tmp_path: Path) -> None:
    artifact = filtered(tmp_path / "a", [filtered_row(0, prompt=3, response=4)])
    documents = read_documents(DocumentIndex.of([(artifact, None)]), [artifact], mask_prefix=False)
    assert documents.ids.tolist() == [0, 1, 2, 100, 101, 102, 103]
    assert documents.first_targets.tolist() == [3]


@pytest.mark.parametrize(("mask", "first"), [(False, 1), (True, 3)])
def test_prefix_mask(tmp_path: Path, mask: bool, first: int) -> None:
    artifact = filtered(tmp_path / "a", [filtered_row(0, 1, 4, prefix_bytes=2)])
    documents = read_documents(DocumentIndex.of([(artifact, None)]), [artifact], mask_prefix=mask)
    assert documents.first_targets.tolist() == [first]


@pytest.mark.parametrize("window", [1_000, 2])
def test_pack_step_loses_and_doubles_nothing(
    make_context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(packing, "WINDOW", window)
    rows = [filtered_row(index, 2, 3 + index % 9) for index in range(50)]
    responses = filtered(tmp_path / "responses", *(rows[start : start + 10] for start in range(0, 50, 10)))
    context = make_context(PackStepConfig(context_length=32, seed=0), {"responses": responses.path})
    facts = PackStep().run(context)
    context.output.finish(**facts)
    packs = list(Artifact(context.output.path).rows("packs"))
    assert sorted(uuid for row in packs for uuid in row["uuids"]) == sorted(row["uuid"] for row in rows)
    for row in packs:
        assert sum(row["document_lengths"]) == len(row["input_ids"]) == len(row["loss_mask"]) <= 32
    assert facts["counts"]["trained_tokens"] == sum(len(row["student_token_ids"]) for row in rows)
    assert len(Artifact(context.output.path).shards("packs")) == (1 if window == 1_000 else 7)
    by_uuid = {row["uuid"]: [*row["student_prompt_ids"], *row["student_token_ids"]] for row in rows}
    for row in packs:
        assert row["input_ids"] == [token for uuid in row["uuids"] for token in by_uuid[uuid]]
        assert (row["tokens"], row["trained_tokens"]) == (len(row["loss_mask"]), sum(row["loss_mask"]))


def test_mixed_policy_packs_take_off_policy_rows_in_ratio(make_context: Any, tmp_path: Path) -> None:
    inputs = {
        "responses": filtered(
            tmp_path / "mixed", [filtered_row(index, 1, 4, prefix_bytes=2) for index in range(4)]
        ).path,
        "off_policy": filtered(tmp_path / "off", [filtered_row(100 + index, 1, 4) for index in range(30)]).path,
    }
    config = PackStepConfig(context_length=32, seed=0, off_policy_ratio=2.5, mask_prefix=True)
    context = make_context(config, inputs)
    facts = PackStep().run(context)
    assert facts["counts"]["documents"] == 14
    assert facts["counts"]["trained_tokens"] == 4 * 2 + 10 * 4


def test_too_few_off_policy_rows_are_said(
    make_context: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = {
        "responses": filtered(tmp_path / "mixed", [filtered_row(index, 1, 4) for index in range(4)]).path,
        "off_policy": filtered(tmp_path / "off", [filtered_row(100 + index, 1, 4) for index in range(3)]).path,
    }
    facts = PackStep().run(make_context(PackStepConfig(context_length=32, seed=0, off_policy_ratio=2), inputs))
    assert facts["off_policy"] == {"wanted": 8, "taken": 3}
    assert facts["counts"]["documents"] == 7
    assert "off_policy_ratio=2 asks for 8 rows of the stage before, which has 3" in capsys.readouterr().err


@pytest.mark.parametrize("window", [1_000, 2])
def test_held_out_prompts_are_trained_on_in_no_stage(
    make_context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """The same ones in every stage, in packs of their own, with all their responses."""
    monkeypatch.setattr(packing, "WINDOW", window)
    held_out = []
    for stage, prompts in (("first", range(50)), ("second", range(20, 70))):
        rows = [
            {**filtered_row(prompt, 2, 3 + prompt % 9), "sample_index": index} for prompt in prompts for index in (0, 1)
        ]
        responses = filtered(tmp_path / stage, rows)
        config = PackStepConfig(context_length=32, seed=0, held_out=0.2)
        context = make_context(config, {"responses": responses.path}, f"pack_{stage}")
        facts = PackStep().run(context)
        context.output.finish(**facts)
        packed = Artifact(context.output.path)
        uuids = {
            table: [uuid for row in packed.rows(table) for uuid in row["uuids"]] for table in ("packs", "held_out")
        }
        assert sorted(uuids["packs"] + uuids["held_out"]) == sorted(row["uuid"] for row in rows)
        assert not set(uuids["packs"]) & set(uuids["held_out"])
        assert 0 < len(uuids["held_out"]) == facts["held_out"]["documents"] < 40
        assert len(packed.shards("packs")) == len(packed.shards("held_out"))
        held_out.append({uuid for uuid in uuids["held_out"] if 20 <= int(uuid[1:]) < 50})
        assert len(HeldOutPacks(packed, 0, True, 64)) == facts["held_out"]["packs"]
    assert held_out[0] == held_out[1]


def test_nothing_to_hold_out_is_said(make_context: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    responses = filtered(tmp_path / "few", [filtered_row(index, 1, 4) for index in range(4)])
    config = PackStepConfig(context_length=32, seed=0, held_out=0.001)
    facts = PackStep().run(make_context(config, {"responses": responses.path}))
    assert facts["held_out"]["packs"] == 0
    assert "packing.held_out=0.001 holds out none of so few responses" in capsys.readouterr().err


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(1, 400))
def test_windows_share_out_the_documents(lengths: list[int], most: int) -> None:
    numbers = np.arange(len(lengths), dtype=np.int32)
    index = DocumentIndex(numbers, numbers, numbers, np.array(lengths, np.int32))
    windows = index.windows(most)
    assert [row for window in windows for row in window.row] == numbers.tolist()
    assert all(0 < sum(window.length) <= most + max(lengths) for window in windows)
