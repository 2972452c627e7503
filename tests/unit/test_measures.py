"""Measures of graded answers, against independent computations; intervals, by simulation."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dasd_megatron.evaluation.comparison import compare
from dasd_megatron.evaluation.gate import comparisons, read_scores
from dasd_megatron.evaluation.measures import majority, mean_and_error, measure, pass_at
from dasd_megatron.utils.errors import UserError

PROBLEMS, SAMPLES = 60, 16


def recorded(seed: int = 0) -> pa.Table:
    """Verdicts as a step `grade` leaves them."""
    random = np.random.default_rng(seed)
    rows = []
    for problem in range(PROBLEMS):
        chance = random.beta(0.6, 0.6)
        for index in range(SAMPLES):
            right, cut = bool(random.random() < chance), bool(random.random() < 0.1)
            reason = "right" if right else "truncated" if cut else random.choice(["wrong", "no_answer", "timed_out"])
            extracted = "42" if right else None if reason in ("truncated", "no_answer") else str(random.integers(3))
            rows.append(
                {"uuid": f"p{problem}", "temperature": 1.0, "sample_index": index, "tokens": int(random.integers(10, 99)),
                 "finish_reason": "length" if cut else "stop", "correct": right, "extracted": extracted, "reason": reason,
                 "domain": ["algebra", "geometry", None][problem % 3], "problem": None if index % 4 else "no_answer"}
            )  # fmt: skip
    random.shuffle(rows)  # type: ignore[arg-type]
    table = pa.Table.from_pylist(rows)
    return table.set_column(1, "temperature", table["temperature"].cast(pa.float32()))


def test_measures_equal_independent_ones() -> None:
    table = recorded()
    found = measure(table)["1"]
    rows = table.to_pylist()
    by_problem = [[row["correct"] for row in rows if row["uuid"] == f"p{n}"] for n in range(PROBLEMS)]
    means = np.mean(by_problem, axis=1)
    assert found["samples"] == SAMPLES
    assert found["well_formed"] == 0.75
    assert list(found["domains"]) == ["algebra", "geometry", "no domain"]
    assert found["domains"]["geometry"]["mean"] == pytest.approx(means[1::3].mean())
    assert found["domains"]["no domain"]["problems"] == PROBLEMS // 3
    assert found["accuracy"]["mean"] == pytest.approx(means.mean())
    assert found["accuracy"]["standard_error"] == pytest.approx(stats.sem(means))
    low, high = stats.t.interval(0.95, PROBLEMS - 1, means.mean(), stats.sem(means))
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == pytest.approx((low, high))
    assert list(found["pass"]) == ["2", "4", "8", "16"]
    for k, passed in found["pass"].items():
        # Of k answers without putting back, one or more is right: hypergeometric.
        expected = [1 - stats.hypergeom(SAMPLES, sum(of), int(k)).pmf(0) for of in by_problem]
        assert passed["mean"] == pytest.approx(np.mean(expected))
        assert passed["standard_error"] == pytest.approx(stats.sem(expected))
    assert found["truncated"] == sum(row["finish_reason"] == "length" for row in rows) / len(rows)
    assert found["unextracted"] == sum(row["reason"] == "no_answer" for row in rows) / len(rows)
    assert found["timed_out"] == sum(row["reason"] == "timed_out" for row in rows) / len(rows)


def test_the_order_of_answers_and_shards_changes_nothing() -> None:
    """avg@k depended on how samples were chunked: lighteval#771."""
    table = recorded()
    order = np.random.default_rng(1).permutation(len(table))
    one, other = measure(table)["1"], measure(table.take(pa.array(order)))["1"]
    for name in ("accuracy", "majority"):
        assert one[name] == pytest.approx(other[name])
    assert one["pass"]["16"] == pytest.approx(other["pass"]["16"])


@given(st.integers(1, 10).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_subsets(case: tuple[int, int, int]) -> None:
    samples, right, k = case
    verdicts = [True] * right + [False] * (samples - right)
    subsets = list(itertools.combinations(verdicts, k))
    assert pass_at(right, samples, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([(True, "1/2"), (True, "0.5"), (False, "3"), (False, "3"), (False, "3")], 0.0),
        ([(True, "1/2"), (True, "0.5"), (False, "3"), (False, "4")], 1.0),
        ([(True, "1"), (False, "2")], 0.5),
        ([(False, None), (False, None), (True, "1")], 1.0),
        ([(False, None)], 0.0),
    ],
)
def test_majority(answers: list[tuple[bool, str | None]], expected: float) -> None:
    assert majority([right for right, _ in answers], [answer for _, answer in answers]) == expected


@pytest.mark.parametrize(("problems", "samples"), [(30, 64), (60, 16), (198, 8)])
def test_intervals_cover(problems: int, samples: int) -> None:
    """The true mean lies in 95% of the intervals, for problems and answers drawn independently in each trial."""
    random, trials = np.random.default_rng(problems), 4000
    chances = random.beta(1.2, 0.8, (trials, problems))
    means = random.binomial(samples, chances) / samples
    truth = 1.2 / 2.0
    covered = [found["low"] <= truth <= found["high"] for found in map(mean_and_error, means)]
    assert 0.93 < np.mean(covered) < 0.97


def test_intervals_of_differences_cover() -> None:
    """Two models on the same problems, one of them better by 5 points."""
    random, covered, trials = np.random.default_rng(0), 0, 300
    for _ in range(trials):
        chances = random.beta(1.0, 1.0, 60) * 0.9
        one, other = (random.binomial(16, np.clip(chances + gain, 0, 1)) / 16 for gain in (0.05, 0.0))
        found = compare(dict(enumerate(one.tolist())), dict(enumerate(other.tolist())))  # type: ignore[arg-type]
        covered += found.low <= 0.05 <= found.high
    assert 0.91 < covered / trials < 0.985  # of 300 trials, the interval of 0.95 itself


def test_a_permutation_test() -> None:
    random = np.random.default_rng(0)
    scores = {f"p{n}": float(value) for n, value in enumerate(random.random(40))}
    others = {name: value + float(random.normal(0, 0.1)) for name, value in scores.items()}
    found = compare(scores, others)
    differences = np.array([scores[name] - others[name] for name in scores])
    signs = random.choice([-1, 1], (20_000, 40))
    expected = np.mean(np.abs((signs * differences).mean(axis=1)) >= abs(differences.mean()))
    assert found.p_value == pytest.approx(expected, abs=0.02)
    assert found.difference == pytest.approx(differences.mean())
    assert compare(scores, scores).p_value == 1.0
    better = compare({name: value + 0.5 for name, value in scores.items()}, others)
    assert better.p_value < 0.001
    assert better.low < better.difference < better.high
    with pytest.raises(
        UserError, match=r"scores of other problems can't be compared: 1 are in one of them alone, such as 'p9'"
    ):
        compare(scores, {name: value for name, value in scores.items() if name != "p9"})


def scores_file(folder: Path, models: dict[str, float], sha256: str = "a", benchmark: str = "aime24") -> Path:
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.02, 30)
    content: dict[str, Any] = {
        benchmark: {
            "sha256": sha256,
            "models": {
                model: {"1": {f"p{n}": mean + float(noise[n]) * (n % 2) for n in range(30)}}
                for model, mean in models.items()
            },
        }
    }
    folder.mkdir(exist_ok=True)
    (folder / "scores.json").write_text(json.dumps(content))
    return folder


def test_the_gate(tmp_path: Path) -> None:
    old = read_scores(str(scores_file(tmp_path / "old", {"student": 0.5})))
    for mean, tolerance, worse in ((0.5, 0.0, False), (0.45, 0.0, True), (0.45, 0.1, False), (0.6, 0.0, False)):
        new = read_scores(str(scores_file(tmp_path / "new", {"student": mean})))
        ((benchmark, temperature, found),) = comparisons(new, old)
        assert (benchmark, temperature, found.is_worse(tolerance)) == ("aime24", "1", worse)


def test_the_gates_refusals(tmp_path: Path) -> None:
    one = read_scores(str(scores_file(tmp_path / "one", {"student": 0.5})))
    with pytest.raises(UserError, match=r"none/scores\.json: no such file|none: no such file"):
        read_scores(str(tmp_path / "none"))
    several = scores_file(tmp_path / "several", {"student": 0.5, "mixed_policy": 0.6})
    with pytest.raises(UserError, match=r"has scores of student, mixed_policy; say which: .*several:MODEL"):
        read_scores(str(several))
    assert read_scores(f"{several}:mixed_policy").name.endswith("several:mixed_policy")
    with pytest.raises(UserError, match=r"aime24: the problems aren't those of"):
        list(comparisons(one, read_scores(str(scores_file(tmp_path / "sha", {"student": 0.5}, sha256="b")))))
    with pytest.raises(UserError, match=r"has no benchmark at a temperature that was measured here: it has gpqa \(1\)"):
        list(comparisons(one, read_scores(str(scores_file(tmp_path / "gpqa", {"student": 0.5}, benchmark="gpqa")))))
    models = {"student": {"1": {"p": 0.5}}}
    for content in (
        [1],
        {"aime24": {"models": models}},
        {"aime24": {"sha256": "a", "models": {"student": {"1": {"p": "x"}}}}},
    ):
        (tmp_path / "one" / "scores.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=r"no scores that `dasd evaluate` has written"):
            read_scores(str(tmp_path / "one"))


def test_the_gate_says_what_it_did_not_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = scores_file(tmp_path / "new", {"student": 0.5}), scores_file(tmp_path / "old", {"student": 0.5})
    content = json.loads((new / "scores.json").read_text())
    content["gpqa"] = {**content["aime24"], "sha256": "c"}
    content["aime24"]["models"]["student"]["0.6"] = content["aime24"]["models"]["student"]["1"]
    (new / "scores.json").write_text(json.dumps(content))
    assert len(list(comparisons(read_scores(str(new)), read_scores(str(old))))) == 1
    said = capsys.readouterr().err
    assert "warning: gpqa: not compared;" in said
    assert "warning: aime24 at 0.6: not compared;" in said


def test_recorded_verdicts_have_all_reasons() -> None:
    assert set(Counter(recorded()["reason"].to_pylist())) == {"right", "wrong", "no_answer", "timed_out", "truncated"}
