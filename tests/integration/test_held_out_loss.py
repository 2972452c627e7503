"""The loss on packs that are held out: measured as often as asked for, and nothing else changes by it.

Its values are compared with torch's in test_training_against_torch, and between layouts in test_layout_parity.
"""

from __future__ import annotations

import pytest

from dasd_megatron.config.training import ParallelConfig
from tests.helpers.training_runs import Run, Runs, check_same


def measured(run: Run) -> dict[int, float]:
    return {line["step"]: line["held_out_loss"] for line in run.log() if "held_out_loss" in line}


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_measuring_changes_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    """Between the numbers that are read together, too: they are read before."""
    runs: Runs = request.getfixturevalue(kind)
    seldom = runs.run("measured-at-the-end", ParallelConfig(), steps=7)
    often = runs.run("measured-often", ParallelConfig(), steps=7, held_out_every=2, logging={"every": 3})
    assert len(often.finish()) == len(seldom.finish()) == 7
    losses = measured(often)
    assert list(losses) == [2, 4, 6, 7]
    assert measured(seldom) == {7: losses[7]}
    for line in often.numbers():  # what remains is compared bit for bit
        line.pop("held_out_loss", None)
    assert [line["loss"] for line in often.log()] == [line["loss"] for line in seldom.log()]
    weights, expected = often.weights(), seldom.weights()
    assert all(weight.equal(expected[name]) for name, weight in weights.items())
    assert often.draws() == seldom.draws()


def test_a_resumed_stage_measures_the_same(dense: Runs) -> None:
    settings = {"steps": 7, "save_every": 2, "held_out_every": 2}
    whole = dense.run("measured-whole", ParallelConfig(), **settings)
    whole.finish()
    run = dense.run("measured-again", ParallelConfig(), {"FAIL_AT": "5"}, **settings)
    assert run.start().wait(timeout=300) == 2
    assert list(measured(run)) == [2, 4]
    del run.behaviour["FAIL_AT"]
    run.finish()
    assert list(measured(run)) == [2, 4, 6, 7]
    check_same(run, whole)
