"""Means and differences over seeds and problems, with errors of both, and how small a difference could have been seen.

Seeds and problems are both samples: other seeds would give other models, other problems other scores. So the standard error is
that of an analysis of variance with two crossed random factors, (MS_seed + MS_problem - MS_rest) / (seeds * problems), and
intervals and tests are Student's t with Satterthwaite's degrees of freedom (Searle, Casella and McCulloch, Variance Components,
1992). With a single seed, problems alone are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dasd_megatron.evaluation.measures import LEVEL

Numbers = NDArray[np.float64]
# Share of studies in which a difference is to be seen, and simulated studies.
POWER, SIMULATIONS = 0.8, 2_000
# Degrees of freedom for each seed but one, at most: with few seeds that are alike by chance the formula gives hundreds, and too
# narrow intervals.
MOST_FREEDOM = 4.0


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and problems.

    Attributes:
        problems: over how many.
        error: its standard error, of both.
        seed_error, problem_error: of the mean over seeds, the problems being given, and the other way round.
        low, high: its interval at LEVEL.
        p_value: of its being zero.
    """

    problems: int
    mean: float
    error: float
    seed_error: float
    problem_error: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class _Spread:
    """Of tables of scores, one number each: variances of the mean by seeds, by problems, by both; and degrees of freedom."""

    seed: Numbers
    problem: Numbers
    both: Numbers
    freedom: Numbers


def estimate(scores: Numbers) -> Estimate:
    """`scores`: float64 (seeds, problems); for a difference, of runs with the same seed on the same problem."""
    from scipy.stats import t

    spread = _spread(scores[np.newaxis])
    mean, error, freedom = float(scores.mean()), float(spread.both[0]) ** 0.5, float(spread.freedom[0])
    width = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    p_value = float(2 * t.sf(abs(mean) / error, freedom)) if error else float(mean == 0)
    of_seeds, of_problems = float(spread.seed[0]) ** 0.5, float(spread.problem[0]) ** 0.5
    return Estimate(scores.shape[1], mean, error, of_seeds, of_problems, mean - width, mean + width, p_value)


def _spread(tables: Numbers) -> _Spread:
    """`tables`: (tables, seeds, problems)."""
    _, seeds, problems = tables.shape
    by_seed, by_problem = tables.mean(axis=2), tables.mean(axis=1)
    if seeds == 1:
        problem = _variance(by_problem) / problems
        return _Spread(np.zeros_like(problem), problem, problem, np.full_like(problem, max(problems - 1, 1)))
    rest = tables - by_seed[:, :, np.newaxis] - by_problem[:, np.newaxis] + tables.mean(axis=(1, 2), keepdims=True)
    cells = (rest**2).sum(axis=(1, 2)) / max((seeds - 1) * (problems - 1), 1) / (seeds * problems)
    seed, problem = _variance(by_seed) / seeds, _variance(by_problem) / problems
    # What a cell adds is in both.
    both = np.maximum(seed + problem - cells, np.maximum(seed, problem))
    squares = seed**2 / (seeds - 1) + (problem**2 + cells**2 / (seeds - 1)) / max(problems - 1, 1)
    freedom = np.divide(both**2, squares, out=np.full_like(both, seeds - 1), where=squares > 0)
    return _Spread(seed, problem, both, np.clip(freedom, 1.0, MOST_FREEDOM * (seeds - 1)))


def _variance(values: Numbers) -> Numbers:
    """Of the last axis; 0 of a single value."""
    if values.shape[-1] < 2:
        return np.zeros(values.shape[:-1])
    found: Numbers = values.var(axis=-1, ddof=1)
    return found


def smallest_seen(differences: Numbers, seed: int = 0) -> float:
    """The true difference that a study of this size and spread would find in POWER of all cases, by simulation.

    Args:
        differences: float64 (seeds, problems), as `estimate` takes them.
    """
    from scipy.optimize import brentq
    from scipy.stats import t

    if not np.ptp(differences):
        return 0.0
    random = np.random.default_rng(seed)
    means, limits = np.empty(SIMULATIONS), np.empty(SIMULATIONS)
    for number in range(SIMULATIONS):
        table = _simulated(differences, random)
        spread = _spread(table[np.newaxis])
        means[number] = table.mean()
        limits[number] = float(t.ppf((1 + LEVEL) / 2, spread.freedom[0])) * float(spread.both[0]) ** 0.5
    widest = float(np.max(limits + np.abs(means)))
    if widest == 0:
        return 0.0
    return float(brentq(lambda true: np.mean(np.abs(means + true) > limits) - POWER, 0.0, 2 * widest))


def _simulated(differences: Numbers, random: np.random.Generator) -> Numbers:
    """Of a study in which there is no difference, and whose seeds, problems and cells spread as in `differences`."""
    seeds, problems = differences.shape
    rest = differences - differences.mean(axis=0) - differences.mean(axis=1, keepdims=True) + differences.mean()
    cells = float((rest**2).sum()) / max((seeds - 1) * (problems - 1), 1)
    of_problems = max(float(_variance(differences.mean(axis=0))) - cells / seeds, 0.0)
    of_seeds = max(float(_variance(differences.mean(axis=1))) - cells / problems, 0.0) if seeds > 1 else 0.0
    table = random.normal(0.0, cells**0.5, (seeds, problems))
    table += random.normal(0.0, of_seeds**0.5, (seeds, 1))
    return table + random.normal(0.0, of_problems**0.5, (1, problems))
