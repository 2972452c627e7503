"""From responses to packs: `filters`, `selection`, `packing`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from dasd_megatron.config.base import Config, Count, Positive, Probability


class FiltersConfig(Config):
    """What never reaches training (paper, section 2.2). The repetition limits are ours: the paper states none.

    They are loose: a limit that drops good reasoning costs more than one that lets a rare loop through. Prompt, response and
    end of turn must fit `packing.context_length`, and the student's own positions, in its tokens; that has no setting here.
    """

    max_repeated_share: Probability = 0.2
    """Share of a response's words that one stretch may take in which the same words, or the same with other numbers, come six
    times in a row or more. Fenced code doesn't count, unless one stretch of exact repeats is four fifths of all."""

    max_recurring_share: Probability = 0.4
    """Share of a response's words that may be part of sequences of 20 words that occur ten times or more, wherever
    they are: a loop whose steps come in changing order."""

    min_repeated_words: Positive = 200
    """Fewer words than these are never too many."""

    right_answers_only: bool = False
    """Drop responses whose final answer is wrong by the `grader` of their problems' source; those to problems without a reference
    answer stay. The paper doesn't: it needs none."""

    additional: dict[str, dict[str, Any]] = {}
    """Filters that plugins register, with their settings: `{too_short: {min_tokens: 20}}`. They come after the others."""


class SelectionConfig(Config):
    """Divergence-aware sampling (paper, section 2.3), or random choice under the same budget.

    Default score: the share of sentences with p_T - p_S > 0.5. A difference of probabilities, not a ratio: a log-ratio
    rewards sentences that both models find unlikely, such as the teacher's own slips.
    """

    method: Literal["divergence", "random"] = "divergence"
    """Best score first, or at random."""

    score: str = "share_above"
    """`share_above` (the paper's), `mean_difference`, `mean_log_ratio`, `rank_surprisal` (arXiv 2601.14249), `learnability`
    (LARK, arXiv 2605.30651), or one that a plugin registers."""

    threshold: Probability = 0.5
    """p_T - p_S above which a sentence counts as Teacher, and below whose negative as Student."""

    mean: Literal["token", "byte"] = "token"
    """What a sentence's log-probabilities are averaged over. The paper's: tokens. Bytes are the same for both models, where one
    cuts numbers into digits, say, and the other doesn't; probabilities are higher then, and differences smaller."""

    responses_per_prompt: Positive = 1
    """How many of a prompt's candidates are chosen."""

    total: Count | None = None
    """Budget, in all or by domain, `{math: 45_400, code: 20_100}`: then nothing of other domains is chosen. By default every
    prompt keeps its quota."""


class PackingConfig(Config):
    """Documents are packed greedily to the context length, each isolated from its neighbours."""

    context_length: Positive = 65_536
    """Tokens of a pack."""

    isolate_documents: bool = True
    """Off only for studies: documents of a pack then attend to one another."""

    held_out: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts whose responses are trained on in no stage: their loss is measured, see training.held_out_every."""
