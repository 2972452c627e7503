"""The numbers of a stage, looked at after every step or after several."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from dasd_megatron.config.training import ParallelConfig
from tests.helpers.training_runs import Runs, check_same


@pytest.mark.parametrize("ranks", [1, 2])
def test_how_often_they_are_read_changes_nothing(dense: Runs, ranks: int) -> None:
    """A checkpoint at step 5 has them read before the group of three is full."""
    settings = {"steps": 7, "save_every": 5}
    layout = ParallelConfig(data=ranks)
    often = dense.run(f"often-{ranks}", layout, **settings)
    seldom = dense.run(f"seldom-{ranks}", layout, logging={"every": 3}, **settings)
    often.finish()
    assert len(seldom.finish()) == 7
    check_same(seldom, often)
    groups = [line["seconds"] for line in seldom.numbers()]
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert groups[3] == groups[4] != groups[5]


def test_what_is_no_number_is_noticed_before_it_is_saved(dense: Runs) -> None:
    """By the step in which it came up, and the step's documents; nothing after it is kept."""
    run = dense.run("diverged", ParallelConfig(), learning_rate=1e30, steps=9, save_every=4, logging={"every": 5})
    process = run.start()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    message = errors.strip().splitlines()[-1]
    expected = r"error: train: the (loss|gradient norm) is nan at step 2; the checkpoint before it is kept. Lower .*documents: d0"
    assert re.match(expected, message)
    assert not list(Path(run.output).glob("step-*"))
    assert [line["step"] for line in run.numbers()] == [1]


def test_a_profile_of_some_steps(dense: Runs) -> None:
    """Of those alone, by the first rank; and nothing else changes."""
    plain = dense.run("unprofiled", ParallelConfig(data=2), steps=4)
    run = dense.run("profiled", ParallelConfig(data=2), steps=4, profile=(2, 3))
    assert run.finish() == plain.finish()
    [path] = run.output.glob("profile-*")
    assert path.name == "profile-2-3.json.gz"
    with gzip.open(path, "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {name for name in names if name.startswith("step ")} == {"step 2", "step 3"}
    assert "aten::mm" in names
    check_same(run, plain)
