"""Two models on the same problems: the difference of their scores, with an interval and a test over problems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dasd_megatron.evaluation.measures import LEVEL
from dasd_megatron.utils.errors import UserError

# Resamples of the bootstrap, and permutations.
RESAMPLES = 9_999


@dataclass(frozen=True)
class Comparison:
    """One model's score less another's.

    Attributes:
        problems: that both have.
        difference: mean over problems.
        low, high: interval at LEVEL, by the bootstrap over problems.
        p_value: of no difference, by permutation: the problem's two scores changed places at random.
    """

    problems: int
    difference: float
    low: float
    high: float
    p_value: float

    def is_worse(self, tolerance: float) -> bool:
        """Whether the whole interval lies below `-tolerance`: chance doesn't explain it."""
        return self.high < -tolerance


def compare(scores: Mapping[str, float], others: Mapping[str, float], seed: int = 0) -> Comparison:
    """`scores` less `others`, both by problem. Raises UserError where they are scores of other problems."""
    if set(scores) != set(others):
        only = sorted(set(scores) ^ set(others))
        raise UserError(
            f"scores of other problems can't be compared: {len(only):,} are in one of them alone, such as {only[0]!r}"
        )
    differences = np.array([scores[uuid] - others[uuid] for uuid in sorted(scores)])
    mean = float(differences.mean())
    if len(differences) < 2 or not np.ptp(differences):
        return Comparison(len(differences), mean, mean, mean, 1.0 if mean == 0 else _all_alike(len(differences)))
    from scipy.stats import bootstrap, permutation_test

    options: dict[str, Any] = {"n_resamples": RESAMPLES, "vectorized": True}
    interval = bootstrap(
        (differences,), np.mean, confidence_level=LEVEL, method="BCa", rng=np.random.default_rng(seed), **options
    ).confidence_interval
    tested = permutation_test(
        (differences,),
        lambda values, axis: np.mean(values, axis=axis),
        permutation_type="samples",
        rng=np.random.default_rng(seed),
        **options,
    )
    return Comparison(len(differences), mean, float(interval.low), float(interval.high), float(tested.pvalue))


def _all_alike(problems: int) -> float:
    """P-value where each problem has the same difference: both of the two extreme permutations, of all."""
    return float(min(1.0, 2.0 ** (1 - problems)))
