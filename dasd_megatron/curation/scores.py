"""Selection scores: which of a prompt's candidates are worth most to the student.

Adding one: a function, and a line in BUILTIN (or a plugin that registers it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dasd_megatron.curation.sentence_probabilities import SentenceProbabilities
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.registry import Registry


@dataclass(frozen=True)
class Candidate:
    """What scores see of a response.

    Attributes:
        sentences: teacher's and student's probabilities of its sentences; there may be none.
        logprobs: float32 [tokens], of the student's tokens, the end of turn included, under the student.
        ranks: uint8 [tokens], of these tokens: 1 is the likeliest (see sampling/score.py).
        brier: mean Brier score of these tokens; None where it wasn't computed.
    """

    sentences: SentenceProbabilities
    logprobs: NDArray[np.float32]
    ranks: NDArray[np.uint8]
    brier: float | None = None


Score = Callable[[Sequence[Candidate], float], Sequence[float]]
BUILTIN = ("share_above", "mean_difference", "mean_log_ratio", "rank_surprisal", "learnability")
# Those that need Brier scores: the student computes them only where the recipe selects by such a score.
NEED_BRIER = ("learnability",)
# Each is called with the candidates of one prompt, and the threshold of the recipe's `selection` section; higher is better.
SCORES: Registry[Score] = Registry(
    "selection score", {name: f"dasd_megatron.curation.scores:{name}" for name in BUILTIN}
)
# Clip of ranks in the rank-surprisal ratio, its authors' choice.
MAX_RANK = 100


def share_above(candidates: Sequence[Candidate], threshold: float) -> list[float]:
    """The paper's: share of sentences with p_T - p_S above the threshold."""
    return [_mean(candidate.sentences.difference > threshold) for candidate in candidates]


def mean_difference(candidates: Sequence[Candidate], threshold: float) -> list[float]:
    """Mean of p_T - p_S over sentences."""
    return [_mean(candidate.sentences.difference) for candidate in candidates]


def mean_log_ratio(candidates: Sequence[Candidate], threshold: float) -> list[float]:
    """Mean of log p_T - log p_S over sentences: rewards sentences that both find unlikely."""
    return [_mean(np.log(c.sentences.teacher) - np.log(c.sentences.student)) for c in candidates]


def rank_surprisal(candidates: Sequence[Candidate], threshold: float) -> list[float]:
    """Rank-surprisal ratio (arXiv 2601.14249), negated: its authors prefer the lowest.

    The sum of the tokens' ranks, clipped at 100, by the sum of their surprisals; the end of turn doesn't count.
    """
    return [
        -float(np.minimum(c.ranks[:-1], MAX_RANK).sum(dtype=np.float64))
        / max(-float(c.logprobs[:-1].sum(dtype=np.float64)), 1e-12)
        for c in candidates
    ]


def learnability(candidates: Sequence[Candidate], threshold: float) -> list[float]:
    """LARK (arXiv 2605.30651), by which a prompt's candidates compare with each other alone.

    With mean surprisal L_k and mean Brier score B_k of candidate k: L_k / sum L * (2 B_k / L_k - sum B / sum L). Its authors
    also weight the best by it in training; here they are chosen.
    """
    if any(candidate.brier is None for candidate in candidates):
        raise UserError(
            "selection.score=learnability: the scored responses have no Brier scores; run the step score again"
        )
    brier = np.array([candidate.brier for candidate in candidates], np.float64)
    surprisal = np.array([-np.mean(c.logprobs, dtype=np.float64) for c in candidates]).clip(1e-12)
    found: list[float] = ((2 * brier - surprisal * brier.sum() / surprisal.sum()) / surprisal.sum()).tolist()
    return found


def scores_of(candidates: Sequence[Candidate], names: Iterable[str], threshold: float) -> dict[str, Sequence[float]]:
    """Scores by name, [candidates]."""
    return {name: SCORES.get(name, "selection.score")(candidates, threshold) for name in names}


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    """0 for a response without sentences."""
    return float(np.mean(values)) if len(values) else 0.0
