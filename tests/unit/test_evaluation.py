"""Means and standard errors of what is measured."""

from __future__ import annotations

import numpy as np
import pytest

from dasd_megatron.evaluation.evaluate import mean_and_error


def test_mean_and_error() -> None:
    found = mean_and_error([0.0, 1.0, 1.0, 0.0])
    assert found["mean"] == 0.5
    assert found["standard_error"] == pytest.approx(np.std([0, 1, 1, 0], ddof=1) / 2)
