"""Scores of candidates, and who is chosen."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.config.curation import SelectionConfig
from dasd_megatron.curation.candidates import BINS, CANDIDATES, difference_facts, text_hash
from dasd_megatron.curation.choice import choose
from dasd_megatron.curation.scores import BUILTIN, Candidate, scores_of
from dasd_megatron.curation.selection import _say_too_few
from dasd_megatron.curation.sentence_probabilities import SentenceProbabilities
from dasd_megatron.sampling.engines.engine import brier_scores
from dasd_megatron.utils.errors import UserError


def a_candidate(
    sentences: SentenceProbabilities | None = None,
    logprobs: list[float] | None = None,
    ranks: list[int] | None = None,
    brier: float | None = 0.3,
) -> Candidate:
    nothing = np.zeros(0)
    return Candidate(
        sentences or SentenceProbabilities(nothing, nothing, nothing.astype(int)),
        np.array(logprobs or [-0.1], np.float32),
        np.array(ranks or [1], np.uint8),
        brier,
    )


def test_kinds_and_scores() -> None:
    found = SentenceProbabilities(np.array([0.9, 0.1, 0.5]), np.array([0.1, 0.9, 0.4]), np.arange(3))
    assert found.kinds(0.5) == ["Teacher", "Student", "Shared"]
    scores = scores_of([a_candidate(found), a_candidate()], BUILTIN, 0.5)
    assert scores["share_above"] == pytest.approx([1 / 3, 0])
    assert scores["mean_difference"] == pytest.approx([0.1 / 3, 0])
    assert scores["mean_log_ratio"] == pytest.approx([math.log(0.5 / 0.4) / 3, 0])


def test_rank_surprisal_is_a_ratio_of_sums() -> None:
    """Ranks are clipped at 100, the end of turn is left out, and the lowest ratio is the best."""
    candidates = [
        a_candidate(logprobs=[-0.5, -1.5, -9.0], ranks=[1, 3, 200]),
        a_candidate(logprobs=[-8.0, -2.0, -0.1], ranks=[255, 10, 1]),
    ]
    assert scores_of(candidates, ["rank_surprisal"], 0.5)["rank_surprisal"] == pytest.approx([-4 / 2, -110 / 10])


def test_learnability_compares_the_candidates_of_a_prompt() -> None:
    """By hand: mean surprisals 1 and 3, mean Brier scores 0.2 and 0.9, whose ratio over both is 1.1 / 4."""
    candidates = [
        a_candidate(logprobs=[-0.5, -1.5], brier=0.2),
        a_candidate(logprobs=[-4.0, -2.0], brier=0.9),
    ]
    expected = [1 / 4 * (2 * 0.2 / 1 - 1.1 / 4), 3 / 4 * (2 * 0.9 / 3 - 1.1 / 4)]
    assert scores_of(candidates, ["learnability"], 0.5)["learnability"] == pytest.approx(expected)
    with pytest.raises(UserError, match="no Brier scores; run the step score again"):
        scores_of([a_candidate(brier=None)], ["learnability"], 0.5)


def test_brier_scores_are_of_the_likeliest_tokens() -> None:
    """The distribution over them is made one again; a token outside has no probability in it."""
    top = np.log(np.array([[0.4, 0.2, 0.2]], np.float32))
    inside = brier_scores(top, np.array([[False, True, False]]))
    np.testing.assert_allclose(inside, 1 - 2 * 0.25 + (0.25 + 2 * 0.0625), rtol=1e-6)
    outside = brier_scores(top, np.zeros((1, 3), np.bool_))
    np.testing.assert_allclose(outside, 1 + 0.375, rtol=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=300))
def test_quantiles_and_shares_are_those_of_the_differences(values: list[float]) -> None:
    """Up to the width of a bin."""
    found = difference_facts(np.histogram(values, BINS, (-1, 1))[0])
    width = 2 / BINS
    for share, quantile in found["quantiles"].items():
        exact = np.quantile(values, float(share), method="inverted_cdf")
        assert exact - 1e-3 <= quantile <= exact + width + 1e-3
    for threshold, share in found["teacher_share"].items():
        bounds = [np.mean(np.asarray(values) > float(threshold) + shift) for shift in (width, -width)]
        assert bounds[0] - 1e-3 <= share <= bounds[1] + 1e-3


def candidate(
    uuid: str, index: int, share: float, mean: float = 0.0, text: str | None = None, domain: str | None = None
) -> dict[str, Any]:
    scores = {"share_above": share, "mean_difference": mean, "mean_log_ratio": -share}
    kinds = {"Teacher": 1, "Student": 1, "Shared": 1}
    return {
        "uuid": uuid,
        "sample_index": index,
        "domain": domain,
        "text_hash": text_hash(text or f"{uuid}{index}"),
        **scores,
        **kinds,
    }


FOUR_OF_EACH = [candidate(u, i, share=i / 4, mean=-i) for u in "abc" for i in range(4)]


def chosen_of(candidates: list[dict[str, Any]], selection: SelectionConfig, seed: int) -> set[tuple[str, int]]:
    """(uuid, sample_index) of the chosen ones."""
    chosen = choose(pa.Table.from_pylist(candidates, CANDIDATES), selection, seed)
    return {(row["uuid"], row["sample_index"]) for row, taken in zip(candidates, chosen, strict=True) if taken}


def test_best_score_within_each_prompt() -> None:
    assert chosen_of(FOUR_OF_EACH, SelectionConfig(), seed=0) == {("a", 3), ("b", 3), ("c", 3)}
    assert chosen_of(FOUR_OF_EACH, SelectionConfig(score="mean_log_ratio"), seed=0) == {("a", 0), ("b", 0), ("c", 0)}


def test_ties_go_to_the_mean_difference() -> None:
    tied = [candidate("a", 0, 0.5, 0.1), candidate("a", 1, 0.5, 0.3), candidate("a", 2, 0.5, 0.2)]
    assert chosen_of(tied, SelectionConfig(), seed=0) == {("a", 1)}


def test_budget_takes_every_prompts_first_choice_first() -> None:
    chosen = chosen_of(FOUR_OF_EACH, SelectionConfig(responses_per_prompt=2, total=4), seed=0)
    assert {("a", 3), ("b", 3), ("c", 3)} < chosen
    assert len(chosen) == 4


def test_repeats_of_a_text_are_skipped() -> None:
    same = [candidate("a", 0, 0.9, text="x"), candidate("a", 1, 0.8, text="x"), candidate("a", 2, 0.1, text="y")]
    assert chosen_of(same, SelectionConfig(responses_per_prompt=2), seed=0) == {("a", 0), ("a", 2)}


def test_a_response_is_learned_from_once_whichever_prompt_it_answers() -> None:
    same = [candidate("a", 0, 0.5, text="It  is X."), candidate("b", 0, 0.9, text="it is x."), candidate("b", 1, 0.1)]
    assert chosen_of(same, SelectionConfig(), seed=0) == {("a", 0), ("b", 1)}


DOMAINS = ("math", "code", "science")
BY_DOMAIN = [candidate(f"p{n}", i, i / 4, domain=DOMAINS[n % 3]) for n in range(90) for i in range(3)]


@given(st.fixed_dictionaries({"math": st.integers(1, 90), "code": st.integers(1, 90)}), st.integers(1, 3))
def test_a_budget_by_domain_is_met_exactly_where_there_are_enough(budget: dict[str, int], each: int) -> None:
    """Thirty prompts of each domain; of a domain that isn't named nothing is chosen."""
    selection = SelectionConfig(responses_per_prompt=each, total=budget)
    chosen = chosen_of(BY_DOMAIN, selection, seed=0)
    domain_of = {row["uuid"]: row["domain"] for row in BY_DOMAIN}
    taken = Counter(domain_of[uuid] for uuid, _ in chosen)
    assert taken == {domain: min(count, 30 * each) for domain, count in budget.items()}
    for domain, count in budget.items():
        prompts = {uuid for uuid, _ in chosen if domain_of[uuid] == domain}
        assert len(prompts) == min(count, 30)  # first choices before any second


@pytest.mark.parametrize(
    ("total", "said"),
    [
        (9, ""),
        (999, "select: selection.total=999, but there are 90 responses\n"),
        ({"math": 40, "code": 2}, "select: selection.total.math=40, but there are 30 responses\n"),
        ({"maths": 5, "code": 2}, "select: selection.total.maths=5, but there are 0 responses\n"),
    ],
)
def test_too_few_are_said(capsys: pytest.CaptureFixture[str], total: Any, said: str) -> None:
    candidates = pa.Table.from_pylist(BY_DOMAIN, CANDIDATES)
    selection = SelectionConfig(total=total)
    _say_too_few("select", selection, candidates, choose(candidates, selection, 0))
    assert capsys.readouterr().err == said


def test_a_budget_that_leaves_nothing_is_refused() -> None:
    candidates, selection = pa.Table.from_pylist(BY_DOMAIN, CANDIDATES), SelectionConfig(total={"maths": 5})
    with pytest.raises(UserError, match="no response is chosen; there are, by domain: math 90, code 90, science 90"):
        _say_too_few("select", selection, candidates, choose(candidates, selection, 0))


def test_random_choice_ignores_scores_and_depends_on_the_seed() -> None:
    many = [candidate(f"p{n}", i, share=i / 4) for n in range(200) for i in range(4)]
    first = chosen_of(many, SelectionConfig(method="random"), seed=0)
    assert first == chosen_of(list(reversed(many)), SelectionConfig(method="random"), seed=0)
    assert first != chosen_of(many, SelectionConfig(method="random"), seed=1)
    counts = np.bincount([index for _, index in first], minlength=4)
    assert counts.min() > 25  # 50 expected of each
