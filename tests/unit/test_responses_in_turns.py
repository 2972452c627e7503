"""Responses that student and teacher wrote in turns: in the report's reader and in a release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.curation.filtering import DROPPED
from dasd_megatron.release import data_files
from dasd_megatron.release.data_files import write_stage
from dasd_megatron.release.finished_run import Stage
from dasd_megatron.report.reader.mixed_policy_view import mixed_policy_view
from dasd_megatron.sampling.turns import TURNS

TEXT = "<think>\nÜber drei;und vier;</think>7"
TURN_BYTES = [len("Über drei;".encode()), len("und vier;</think>7")]


@pytest.fixture
def written(tmp_path: Path) -> Artifact:
    """What is left of them after the filter; the chat template has written the first line."""
    row: dict[str, Any] = {"sample_index": 0, "input": "3+4?", "temperature": 1.0, "token_ids": [1, 2], "tokens": 2}
    rows = [{**row, "uuid": f"u{number}", "text": TEXT, "turn_bytes": TURN_BYTES} for number in range(3)]
    writer = ArtifactWriter(tmp_path / "filter_mixed", {"step": "filter_mixed"})
    for shard in range(3):
        writer.write_shard("responses", shard, pa.Table.from_pylist(rows[shard : shard + 1], TURNS))
        dropped = {"uuid": f"d{shard}", "reason": "repeated", "tokens": 9, "input": "1+1?", "text": "<think>2"}
        writer.write_shard("dropped", shard, pa.Table.from_pylist([dropped], DROPPED))
    writer.finish()
    return Artifact(tmp_path / "filter_mixed")


def test_the_reader_shows_who_wrote_what(written: Artifact) -> None:
    view = mixed_policy_view({"filter_mixed": written, "turns_mixed": written}, "mixed", 100)
    kept, dropped = view.items[:3], view.items[3:]
    for item in kept:
        (card,) = item.cards
        assert [(piece.text, piece.writer) for piece in card.pieces] == [
            ("<think>\n", None),
            ("Über drei;", "student"),
            ("und vier;</think>7", "teacher"),
        ]
    assert [card.marks for item in dropped for card in item.cards] == [["dropped", "repeated"]] * 3
    assert view.total == 6


def test_a_release_has_their_texts_alone(written: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "MAX_FILE_BYTES", 0)  # each batch a file
    stage = Stage("mixed", "turns", written)
    found = write_stage(stage, tmp_path / "data")
    assert (found.responses, found.tokens, found.has_logprobs) == (3, 6, False)
    assert not (tmp_path / "data" / "logprobs").exists()
    files = sorted((tmp_path / "data" / "data" / "mixed").iterdir())
    assert [file.name for file in files] == [f"train-{number:05d}.parquet" for number in range(3)]
    rows = pa.concat_tables(map(pq.read_table, files)).to_pylist()
    assert [row["uuid"] for row in rows] == ["u0-0", "u1-0", "u2-0"]
    assert {row["output"] for row in rows} == {TEXT}
    assert {row["meta"]["student_bytes"] for row in rows} == {None}
