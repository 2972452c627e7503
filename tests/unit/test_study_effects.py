"""Errors over seeds and problems: that intervals hold what they promise, and that small studies know that they are small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.studies.effects import POWER, Numbers, estimate, smallest_seen


def drawn(random: np.random.Generator, seeds: int = 5, problems: int = 200, seed: float = 0.03) -> Numbers:
    """Differences without a true one: of problems, of seeds, and of each cell by itself."""
    return (
        random.normal(0, 0.3, (seeds, problems))
        + random.normal(0, seed, (seeds, 1))
        + random.normal(0, 0.2, (1, problems))
    )


@pytest.mark.parametrize("seed", [0.0, 0.03, 0.2])
def test_intervals_hold_the_truth_in_95_of_100_cases(seed: float) -> None:
    random = np.random.default_rng(0)
    found = [estimate(drawn(random, seed=seed)) for _ in range(600)]
    held = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.92 < held <= 0.99
    assert np.mean([one.p_value < 0.05 for one in found]) == pytest.approx(1 - held, abs=1e-9)


def test_one_seed_counts_problems_alone() -> None:
    scores = drawn(np.random.default_rng(1), seeds=1)
    found = estimate(scores)
    assert found.error == found.problem_error == pytest.approx(scores.std(ddof=1) / np.sqrt(scores.size))
    assert found.seed_error == 0


def test_seeds_that_differ_widen_an_interval_whatever_problems_say() -> None:
    alike, other = drawn(np.random.default_rng(2), seed=0.0), drawn(np.random.default_rng(2), seed=0.2)
    assert estimate(other).error > 3 * estimate(alike).error
    assert estimate(other).problem_error == pytest.approx(estimate(alike).problem_error, rel=0.05)


@given(st.integers(1, 4), st.integers(1, 6), st.floats(-1, 1))
def test_a_constant_difference_has_no_error(seeds: int, problems: int, value: float) -> None:
    found = estimate(np.full((seeds, problems), value))
    assert found.mean == pytest.approx(value)
    assert found.error == pytest.approx(0, abs=1e-9)


def test_what_never_varies_can_always_be_seen() -> None:
    assert smallest_seen(np.zeros((3, 40))) == 0


@given(st.integers(2, 5), st.integers(2, 30), st.integers(0, 10**6))
def test_the_order_of_seeds_and_problems_says_nothing(seeds: int, problems: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = drawn(random, seeds, problems)
    turned = scores[random.permutation(seeds)][:, random.permutation(problems)]
    one, other = estimate(scores), estimate(turned)
    assert other.error == pytest.approx(one.error, rel=1e-6)
    assert other.p_value == pytest.approx(one.p_value, rel=1e-4)


def test_a_difference_that_would_be_seen_is_seen_that_often() -> None:
    random = np.random.default_rng(3)
    size = float(np.median([smallest_seen(drawn(random), seed) for seed in range(9)]))
    found = [estimate(drawn(random) + size) for _ in range(400)]
    assert np.mean([one.p_value < 0.05 for one in found]) == pytest.approx(POWER, abs=0.1)


def test_more_seeds_see_smaller_differences() -> None:
    sizes = [smallest_seen(drawn(np.random.default_rng(4), seeds, seed=0.05)) for seeds in (3, 10, 30)]
    assert sizes[0] > sizes[1] > sizes[2]
