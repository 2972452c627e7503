"""Artifacts: whole or absent, checked when read, and clear when the disk refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import disk_error, write_atomically
from dasd_megatron.utils.hashing import END_BYTES, WHOLE_FILE_LIMIT, fingerprint

TABLE = pa.table({"uuid": ["a", "b"], "value": [1, 2]})


def write(folder: Path) -> ArtifactWriter:
    writer = ArtifactWriter(folder, {"step": "test"})
    writer.write_shard("rows", 0, TABLE)
    writer.write_shard("rows", 1, TABLE)
    writer.write_shard("dropped", 0, TABLE.slice(0, 0))
    return writer


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "a").finish(seconds=1.0, counts={"rows": 4})
    artifact = Artifact(tmp_path / "a")
    assert artifact.read("rows").to_pylist() == TABLE.to_pylist() * 2
    assert list(artifact.rows("dropped")) == []
    assert artifact.read("rows", shard=1).equals(TABLE)
    assert artifact.manifest["counts"] == {"rows": 4}


def test_same_rows_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    for path in (tmp_path / "a").glob("*.parquet"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_unfinished_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(UserError, match=r"not finished \(no COMPLETE\)"):
        Artifact(tmp_path / "a")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: os.truncate(path, path.stat().st_size - 1), "truncated or changed"),
        (lambda path: path.unlink(), "the file is missing"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "damaged"),
    ],
)
def test_damaged_shard(tmp_path: Path, damage: object, message: str) -> None:
    write(tmp_path / "a").finish()
    damage(tmp_path / "a" / "rows-00001.parquet")  # type: ignore[operator]
    with pytest.raises(UserError, match=message) as caught:
        Artifact(tmp_path / "a").read("rows")
    assert "rows-00001.parquet" in str(caught.value)
    assert f"delete the folder {tmp_path / 'a'} and run again" in str(caught.value)


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def write_half(file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="the disk is full"):
        write_atomically(tmp_path / "file", write_half)
    assert list(tmp_path.iterdir()) == []


def test_full_disk(small_disk: Callable[[str], Path]) -> None:
    folder = small_disk("64k")
    writer = ArtifactWriter(folder / "a", {})
    writer.write_shard("rows", 0, TABLE)
    with pytest.raises(UserError, match="the disk is full; free some space and run the same command again"):
        writer.write_shard("rows", 1, pa.table({"noise": [os.urandom(1000) for _ in range(200)]}))
    assert [path.name for path in (folder / "a").iterdir()] == ["rows-00000.parquet"]


def test_unwritable_folder() -> None:
    # A kernel file system refuses even root, whom a mode of 0555 would not stop.
    with pytest.raises(UserError, match=r"can't be written"):
        ArtifactWriter(Path("/proc/artifact"), {})


@pytest.mark.parametrize(
    ("code", "message"),
    [(13, "make it writable"), (30, "make it writable"), (28, "the disk is full"), (5, "can't be written")],
)
def test_disk_messages(code: int, message: str) -> None:
    assert message in str(disk_error(Path("x"), OSError(code, os.strerror(code))))


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path) -> None:
    writer = write(tmp_path / "a")
    (tmp_path / "a" / ".rows-00002.parquet.99.tmp").write_text("half")
    (tmp_path / "a" / ".step-0000010.tmp").mkdir()  # half a checkpoint
    (tmp_path / "a" / ".step-0000010.tmp" / "file").write_text("half")
    writer.clear_leftovers()
    assert not list((tmp_path / "a").glob(".*.tmp"))


def test_fingerprint_sees_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").write_text("1")
    first = fingerprint(tmp_path / "m")
    (tmp_path / "m" / "a").write_text("2")
    assert fingerprint(tmp_path / "m") != first
    (tmp_path / "m" / "a").write_text("1")
    assert fingerprint(tmp_path / "m") == first
    (tmp_path / "m" / "a").rename(tmp_path / "m" / "b")
    assert fingerprint(tmp_path / "m") != first


def test_fingerprint_of_a_large_file_reads_both_ends(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(WHOLE_FILE_LIMIT + 2 * END_BYTES)
    first = fingerprint(large)
    with large.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert fingerprint(large) != first


def test_absent_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        fingerprint(tmp_path / "absent")


@pytest.mark.parametrize("content", ["{}", "{", None])
def test_damaged_manifest(tmp_path: Path, content: str | None) -> None:
    write(tmp_path / "a").finish()
    manifest = tmp_path / "a" / "manifest.json"
    manifest.unlink() if content is None else manifest.write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json.*delete the folder"):
        Artifact(tmp_path / "a")


def test_other_files_are_checked_too(tmp_path: Path) -> None:
    writer = write(tmp_path / "a")
    (tmp_path / "a" / "metrics.jsonl").write_text("1234")
    writer.finish()
    artifact = Artifact(tmp_path / "a")
    assert artifact.file("metrics.jsonl").read_text() == "1234"
    (tmp_path / "a" / "metrics.jsonl").write_text("1334")
    with pytest.raises(UserError, match="its hash is not the manifest's"):
        artifact.file("metrics.jsonl")
    with pytest.raises(UserError, match="holds no file 'other'"):
        artifact.file("other")
