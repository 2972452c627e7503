"""Progress where there is no terminal."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pyarrow as pa
import pytest

from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.sampling.sampling_progress import OpenWork, SamplingWatch, reported


def test_log_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from dasd_megatron.utils.progress import Progress

    with Progress("train", 2, "steps") as progress:
        progress.update(1)
        progress.update(2, "loss 1.0")
        progress.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: 2/2 steps")
    assert lines[0].endswith("loss 1.0")


def test_a_response_is_counted_once(tmp_path: Path) -> None:
    """Whether its shard is whole, open here, or still called open by a process that has gone on or died."""
    output = ArtifactWriter(tmp_path / "step", {})
    output.write_shard("responses", 0, pa.table({"tokens": [10, 30]}))
    watch = SamplingWatch(output, "responses", 3)
    work = OpenWork({0: (2, 1, 10), 1: (2, 1, 20)}, in_flight=5)
    output.journals.mkdir()
    with reported(output.journals, lambda: work):
        status = output.journals / f"status.{socket.gethostname()}.{os.getpid()}.json"
        said = json.dumps({"shards": work.shards, "in_flight": work.in_flight})
        status.write_text(said)
        (output.journals / f"status.{socket.gethostname()}.4194305.json").write_text(said)  # above every process number
        (output.journals / "status.elsewhere.7.json").write_text(
            json.dumps({"shards": {1: (2, 2, 30)}, "in_flight": 0})
        )
        os.utime(output.journals / "status.elsewhere.7.json", (1, 1))
        standing = watch()
    assert standing.done == 10 + 30 + 20 + 5
    assert standing.note == "(3 of 6 responses)"
