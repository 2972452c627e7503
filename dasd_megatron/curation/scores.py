"""Selection scores: how much a response has of what the teacher finds likely and the student does not.

Adding one: a function, and a line in BUILTIN (or a plugin that registers it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from dasd_megatron.curation.sentence_probabilities import SentenceProbabilities
from dasd_megatron.utils.registry import Registry

BUILTIN = ("share_above", "mean_difference", "mean_log_ratio")
# Each is called with a response that has sentences, and the threshold of the recipe's `selection` section.
SCORES: Registry[Callable[[SentenceProbabilities, float], float]] = Registry(
    "selection score", {name: f"dasd_megatron.curation.scores:{name}" for name in BUILTIN}
)


def share_above(sentences: SentenceProbabilities, threshold: float) -> float:
    """The paper's: share of sentences with p_T - p_S above the threshold."""
    return float(np.mean(sentences.difference > threshold))


def mean_difference(sentences: SentenceProbabilities, threshold: float) -> float:
    """Mean of p_T - p_S."""
    return float(np.mean(sentences.difference))


def mean_log_ratio(sentences: SentenceProbabilities, threshold: float) -> float:
    """Mean of log p_T - log p_S: rewards sentences that both find unlikely."""
    return float(np.mean(np.log(sentences.teacher) - np.log(sentences.student)))


def scores_of(sentences: SentenceProbabilities, names: Iterable[str], threshold: float) -> dict[str, float]:
    """Scores by name. A response without sentences scores 0."""
    if not len(sentences.teacher):
        return dict.fromkeys(names, 0.0)
    return {name: SCORES.get(name, "selection.score")(sentences, threshold) for name in names}
