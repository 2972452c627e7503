"""A table that extends another reads as one table; a shard is read in pieces, and damage anywhere in it is noticed."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.columns import numpy_rows
from dasd_megatron.artifacts.shard_reader import ROW
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.utils.errors import UserError

# Small enough that a few rows make several row groups.
GROUP_BYTES = 64


def make(folder: Path, shards: list[pa.Table], base: str | None = None) -> Artifact:
    writer = ArtifactWriter(folder, {})
    for number, content in enumerate(shards):
        with writer.shard(number, "rows", GROUP_BYTES) as shard:
            shard.write({"rows": content})
    writer.finish(extends={} if base is None else {"rows": base})
    return Artifact(folder)


def table(size: int, **columns: Sequence[object]) -> pa.Table:
    text = pa.array([f"row {n}" for n in range(size)], pa.string())
    return pa.table({"number": pa.array(range(size), pa.int64()), "text": text, **columns})


@st.composite
def shards_and_choices(draw: st.DrawFn) -> list[tuple[int, list[int], list[int]]]:
    """Of each shard: rows, those that the second table keeps, and those of them that the third one keeps."""
    shards = []
    for size in draw(st.lists(st.integers(0, 30), min_size=1, max_size=3)):
        kept = [n for n in range(size) if draw(st.booleans())]
        again = [n for n in range(len(kept)) if draw(st.booleans())]
        shards.append((size, kept, again))
    return shards


@given(shards_and_choices())
def test_extended_tables_read_as_one(
    tmp_path_factory: pytest.TempPathFactory, shards: list[tuple[int, list[int], list[int]]]
) -> None:
    """What stays of what stayed, with a column added on the way that replaces one of the first table."""
    folder = tmp_path_factory.mktemp("artifacts")
    make(folder / "a", [table(size) for size, _, _ in shards])
    second = [
        pa.table({ROW: pa.array(kept, pa.int32()), "text": pa.array([f"new {n}" for n in kept], pa.string())})
        for _, kept, _ in shards
    ]
    make(folder / "b", second, "a")
    make(
        folder / "c", [pa.table({"double": pa.array([2 * n for n in kept], pa.int64())}) for _, kept, _ in shards], "b"
    )
    last = make(folder / "d", [pa.table({ROW: pa.array(again, pa.int32())}) for _, _, again in shards], "c")
    expected = [
        {"number": kept[n], "text": f"new {kept[n]}", "double": 2 * kept[n]} for _, kept, again in shards for n in again
    ]
    assert set(last.columns("rows")) == {"number", "text", "double"}
    assert list(last.rows("rows", ["number", "text", "double"])) == expected
    assert [row["text"] for row in last.rows("rows", ["text"])] == [row["text"] for row in expected]
    assert last.read("rows").to_pylist() == [{name: row[name] for name in last.columns("rows")} for row in expected]
    assert last.row_count("rows") == len(expected)
    assert list(last.rows("rows", [ROW])) == [{ROW: n} for _, _, again in shards for n in again]


@given(st.integers(1, 40), st.randoms(use_true_random=False))
def test_rows_are_taken_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, size: int, chance: random.Random
) -> None:
    artifact = make(tmp_path_factory.mktemp("artifacts") / "a", [table(size)])
    rows = [chance.randrange(size) for _ in range(chance.randrange(20))]
    reader = artifact.reader("rows", 0, ["number"])
    assert reader.take(np.array(rows, np.int64))["number"].to_pylist() == rows
    start = chance.randrange(size)
    stop = chance.randrange(start, size + 1)
    assert pa.concat_tables(reader.batches(start, stop))["number"].to_pylist() == list(range(start, stop))


def test_one_row_group_is_in_memory_at_a_time(tmp_path: Path) -> None:
    artifact = make(tmp_path / "a", [table(100)])
    batches = list(artifact.batches("rows"))
    assert len(batches) > 20
    assert max(len(batch) for batch in batches) < 10


def test_lists_of_numbers_are_arrays(tmp_path: Path) -> None:
    content = [[1, 2], [], [3]]
    artifact = make(tmp_path / "a", [table(3, ids=content, flags=[[True], [False, True], []])])
    for batch in artifact.batches("rows"):
        for row in numpy_rows(batch):
            assert row["ids"].tolist() == content[row["number"]]
            assert row["flags"].dtype == np.bool_
            assert row["text"] == f"row {row['number']}"


def test_a_column_that_is_nowhere(tmp_path: Path) -> None:
    make(tmp_path / "a", [table(3)])
    last = make(tmp_path / "b", [pa.table({ROW: pa.array([1], pa.int32())})], "a")
    with pytest.raises(UserError, match=f"{tmp_path / 'a'}: the table 'rows' has no column 'size'"):
        last.read("rows", ["size"])
    with pytest.raises(UserError, match="holds no table 'columns'"):
        last.read("columns")


def test_what_is_extended_must_be_there(tmp_path: Path) -> None:
    make(tmp_path / "a", [table(3)])
    last = make(tmp_path / "b", [pa.table({ROW: pa.array([1], pa.int32())})], "a")
    (tmp_path / "a").rename(tmp_path / "c")
    with pytest.raises(UserError, match=f"{tmp_path / 'a'}: not finished"):
        last.read("rows")


def test_a_shard_is_whole_or_absent(tmp_path: Path) -> None:
    writer = ArtifactWriter(tmp_path / "a", {})
    with contextlib.suppress(ZeroDivisionError), writer.shard(0, "rows") as shard:
        shard.write({"dropped": table(1), "rows": table(2)})
        assert 1 / 0
    assert list((tmp_path / "a").iterdir()) == []
    with writer.shard(0, "rows") as shard:
        shard.write({"dropped": table(0), "rows": table(2)})
        shard.write({"dropped": table(1), "rows": table(0)})
    writer.finish()
    artifact = Artifact(tmp_path / "a")
    assert (artifact.row_count("rows"), artifact.row_count("dropped")) == (2, 1)


def test_any_changed_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    """A checksum covers every page and the footer; the few bytes of a page's header can only break what they describe."""
    content = table(200, values=[[0.25 * n, -1.0] for n in range(200)])
    artifact = make(tmp_path / "a", [content])
    path = tmp_path / "a" / "rows-00000.parquet"
    whole = path.read_bytes()
    noticed, messages = 0, set()
    chance = random.Random(0)
    for _ in range(300):
        place, change = chance.randrange(len(whole)), chance.randrange(1, 256)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
        try:
            assert artifact.read("rows").equals(content)
        except UserError as error:
            messages.add(str(error).partition(" (")[0])
            noticed += 1
    assert messages == {f"{path}: damaged"}
    assert noticed > 150
