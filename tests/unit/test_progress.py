"""Progress where there is no terminal."""

from __future__ import annotations

import pytest


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
