"""Learning rate over a stage, and how many optimizer steps it has."""

from __future__ import annotations

import itertools

import pytest

from dasd_megatron.config.training import TrainingConfig
from dasd_megatron.training.lr_schedule import learning_rate


def test_schedule_warms_up_then_falls_to_the_minimum() -> None:
    training = TrainingConfig(learning_rate=5e-5, min_learning_rate=1e-5)
    rates = [learning_rate(step, 100, training) for step in range(100)]
    assert rates[:10] == pytest.approx([5e-6 * (step + 1) for step in range(10)])
    assert max(rates) == rates[9]
    assert rates[-1] == pytest.approx(1e-5)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))


@pytest.mark.parametrize(("packs", "fields", "steps"), [(91, {}, 9), (91, {"steps": 5}, 5), (64, {"epochs": 1}, 1)])
def test_total_steps(packs: int, fields: dict[str, int], steps: int) -> None:
    assert TrainingConfig(**fields).total_steps(packs) == steps
