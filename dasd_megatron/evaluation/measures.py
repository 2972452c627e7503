"""Measures of graded answers, with standard errors and intervals over problems.

Problems are what is sampled from the world, answers to one problem aren't: so errors are those of means over problems.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
# Of all answers at a temperature: those in which no answer was found, and whose program took too long.
_SHARES = {
    "unextracted": ("no_answer", "not_extracted"),
    "timed_out": ("timed_out",),
}


def mean_and_error(values: ArrayLike) -> dict[str, float]:
    """Mean, its standard error, and its interval at LEVEL by Student's t: {mean, standard_error, low, high}."""
    array = np.asarray(values, dtype=np.float64)
    mean, count = float(array.mean()), len(array)
    if count < 2:
        return {"mean": mean, "standard_error": 0.0, "low": mean, "high": mean}
    from scipy.stats import t

    error = float(array.std(ddof=1) / np.sqrt(count))
    width = float(t.ppf((1 + LEVEL) / 2, count - 1)) * error
    return {"mean": mean, "standard_error": error, "low": mean - width, "high": mean + width}


def _share(values: ArrayLike) -> dict[str, float]:
    """`mean_and_error` of shares: its interval has nothing below 0 or above 1."""
    found = mean_and_error(values)
    return {**found, "low": max(found["low"], 0.0), "high": min(found["high"], 1.0)}


def measure(answers: pa.Table) -> dict[str, Any]:
    """By temperature: avg@k, pass@k for powers of two, majority@k, lengths, shares of answers that went wrong and of those
    that are formed as they should be, and avg@k of each domain where there are several.

    Args:
        answers: columns uuid, domain, temperature, finish_reason, tokens, problem, correct, extracted, reason.
    """
    found = {}
    for temperature in sorted(set(answers["temperature"].to_pylist())):
        chosen = answers.filter(pc.equal(answers["temperature"], pa.scalar(temperature, pa.float32())))
        found[temperature_name(temperature)] = _of_one_temperature(chosen)
    return found


def temperature_name(temperature: float) -> str:
    """As reports have it."""
    return "greedy" if temperature == 0 else f"{temperature:g}"


def _of_one_temperature(answers: pa.Table) -> dict[str, Any]:
    correct: dict[str, list[bool]] = {}
    extracted: dict[str, list[str | None]] = {}
    for row in answers.select(["uuid", "correct", "extracted"]).to_pylist():
        correct.setdefault(row["uuid"], []).append(row["correct"])
        extracted.setdefault(row["uuid"], []).append(row["extracted"])
    samples = max(map(len, correct.values()))
    reasons = Counter(answers["reason"].to_pylist())
    truncated = pc.sum(pc.equal(answers["finish_reason"], "length")).as_py() or 0
    measured: dict[str, Any] = {
        "samples": samples,
        "accuracy": _share([np.mean(values) for values in correct.values()]),
        "tokens": mean_and_error(_mean_tokens(answers)),
        "truncated": truncated / len(answers),
        "well_formed": answers["problem"].null_count / len(answers),
        **{name: sum(reasons[reason] for reason in of) / len(answers) for name, of in _SHARES.items()},
    }
    if samples > 1:
        powers = [2**n for n in range(1, samples.bit_length()) if 2**n <= samples]
        measured["pass"] = {
            str(k): _share([pass_at(sum(values), len(values), k) for values in correct.values()])
            for k in sorted({*powers, samples})
        }
        measured["majority"] = _share([majority(correct[uuid], extracted[uuid]) for uuid in correct])
    domains = {row["uuid"]: row["domain"] for row in answers.select(["uuid", "domain"]).to_pylist()}
    if len(set(domains.values())) > 1:
        by_domain: dict[str, list[float]] = {}
        for uuid, values in correct.items():
            by_domain.setdefault(domains[uuid] or "no domain", []).append(float(np.mean(values)))
        measured["domains"] = {
            name: {"problems": len(means), **_share(means)} for name, means in sorted(by_domain.items())
        }
    return measured


def _mean_tokens(answers: pa.Table) -> NDArray[np.float64]:
    means: NDArray[np.float64] = answers.group_by("uuid").aggregate([("tokens", "mean")])["tokens_mean"].to_numpy()
    return means


def pass_at(right: int, samples: int, k: int) -> float:
    """Probability that one of k of a problem's answers, drawn without putting back, is right: the unbiased pass@k."""
    if samples - right < k:
        return 1.0
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def majority(correct: Sequence[bool], extracted: Sequence[str | None]) -> float:
    """Whether the answer that most of a problem's answers give is right; the mean over answers that tie.

    Right ones are one answer, however they are written; answers without one have no vote.
    """
    votes: Counter[str | None] = Counter()
    for right, answer in zip(correct, extracted, strict=True):
        if right:
            votes[None] += 1
        elif answer is not None:
            votes["".join(answer.split())] += 1
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = [answer for answer, count in votes.items() if count == most]
    return float(None in winners) / len(winners)


def scores_by_problem(answers: pa.Table) -> dict[str, float]:
    """Mean over each problem's answers."""
    table = answers.group_by("uuid").aggregate([("correct", "mean")])
    return dict(zip(table["uuid"].to_pylist(), table["correct_mean"].to_pylist(), strict=True))
