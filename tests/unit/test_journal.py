"""Journals of shards that aren't whole yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.artifacts.journal import NUMBER, Journal, JournalFollower, read_journals, remove_journals
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.utils.errors import UserError

SCHEMA = pa.schema([("text", pa.string()), ("ids", pa.list_(pa.int32()))])


def rows(*texts: str | None) -> pa.Table:
    return pa.Table.from_pylist([{"text": text, "ids": [len(text or "")] * 3} for text in texts], SCHEMA)


def read(folder: Path, shard: int = 0) -> list[tuple[int, Any]]:
    return [(row[NUMBER], row["text"]) for part in read_journals(folder, shard, SCHEMA) for row in part.to_pylist()]


def test_what_was_appended_is_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 7, SCHEMA)
    assert list(tmp_path.iterdir()) == []
    seen = journal.append([4, 2], rows("four", "two"))
    assert seen[NUMBER].to_pylist() == [4, 2]
    journal.append([0], rows(None))
    another = Journal(tmp_path, 7, SCHEMA)  # of a process that did the shard before
    another.append([4], rows("four"))
    assert sorted(read(tmp_path, 7), key=str) == [(0, None), (2, "two"), (4, "four"), (4, "four")]
    assert read(tmp_path, 8) == []
    remove_journals(tmp_path, 7)
    assert read(tmp_path, 7) == []


@given(st.lists(st.lists(st.text(max_size=5), min_size=1, max_size=3), min_size=1, max_size=4), st.data())
def test_cut_off_anywhere_it_has_the_records_before(
    tmp_path_factory: pytest.TempPathFactory, records: list[list[str]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    journal, ends = Journal(folder, 0, SCHEMA), list[int]()
    for texts in records:
        journal.append([0] * len(texts), rows(*texts))
        ends.append(next(folder.iterdir()).stat().st_size)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    size = data.draw(st.integers(0, len(content)))
    zeros = data.draw(st.booleans())  # what a lost node may leave
    left = content[:size] + bytes(len(content) - size if zeros else 0)
    path.write_bytes(left)
    whole = sum(left[:end] == content[:end] for end in ends)
    assert [text for _, text in read(folder)] == [text for texts in records[:whole] for text in texts]


def test_a_follower_sees_each_record_once(tmp_path: Path) -> None:
    follower = JournalFollower(tmp_path, SCHEMA)
    journals = [Journal(tmp_path, shard, SCHEMA) for shard in (0, 1)]
    assert list(follower.records()) == []
    journals[0].append([0], rows("a"))
    journals[1].append([0], rows("b"))
    assert [part()["text"].to_pylist() for part in follower.records()] == [["a"], ["b"]]
    journals[0].append([1], rows("c"))
    (path,) = tmp_path.glob("00000.*")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # being written
    assert list(follower.records()) == []
    path.write_bytes(whole)
    assert [part()["text"].to_pylist() for part in follower.records()] == [["c"]]
    remove_journals(tmp_path, 0)
    assert list(follower.records()) == []


def test_an_artifact_that_is_finished_has_none(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "artifact", {})
    Journal(writer.journals, 0, SCHEMA).append([0], rows("a"))
    writer.write_shard("table", 0, rows("a"))
    writer.clear_leftovers()
    assert read(writer.journals) == [(0, "a")]
    writer.finish(counts={})
    assert not writer.journals.exists()


def test_a_full_disk_is_said(small_disk: Any) -> None:
    journal = Journal(small_disk("64k"), 0, SCHEMA)
    journal.append([0], rows("x"))
    with pytest.raises(UserError, match="the disk is full"):
        journal.append([1], rows("x" * 100_000))
