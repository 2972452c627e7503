"""Whether a model has become worse than a baseline, for continuous integration."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasd_megatron.evaluation.comparison import Comparison, compare
from dasd_megatron.utils.errors import UserError

SCORES = "scores.json"


@dataclass(frozen=True)
class Baseline:
    """A model's scores.

    Attributes:
        name: of it, for people.
        benchmarks: {benchmark: {sha256, scores: {temperature: {problem: score}}}}.
    """

    name: str
    benchmarks: Mapping[str, Mapping[str, Any]]


def read_scores(text: str) -> Baseline:
    """What `text` names: a run folder or its scores.json, and `:MODEL` where that has several models. Raises UserError."""
    path, model = Path(text), ""
    if not path.exists() and ":" in text:
        name, _, model = text.rpartition(":")
        path = Path(name)
    file = path / SCORES if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
        models = list(dict.fromkeys(name for facts in content.values() for name in facts["models"]))
        for facts in content.values():
            _check_scores(facts)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; a finished run or `dasd evaluate` leaves one in its folder") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: no scores that `dasd evaluate` has written ({type(error).__name__})") from None
    if not model and len(models) == 1:
        model = models[0]
    if model not in models:
        raise UserError(f"{file}: has scores of {', '.join(models) or 'no model'}; say which: {path}:MODEL")
    found = {
        benchmark: {"sha256": facts["sha256"], "scores": facts["models"][model]} for benchmark, facts in content.items()
    }
    return Baseline(f"{path}:{model}", found)


def _check_scores(facts: Mapping[str, Any]) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError for what is no benchmark's."""
    if not isinstance(facts["sha256"], str):
        raise TypeError("sha256")
    for by_temperature in facts["models"].values():
        for scores in by_temperature.values():
            for score in scores.values():
                if isinstance(score, bool) or not isinstance(score, (int, float)):
                    raise TypeError("score")


def comparisons(ours: Baseline, baseline: Baseline) -> Iterator[tuple[str, str, Comparison]]:
    """Benchmark, temperature and comparison, of all that both have. Raises UserError where that is nothing, or other problems."""
    found = False
    for benchmark, facts in ours.benchmarks.items():
        others = baseline.benchmarks.get(benchmark)
        if others is None:
            print(f"warning: {benchmark}: not compared; {baseline.name} doesn't have it", file=sys.stderr)
            continue
        if others["sha256"] != facts["sha256"]:
            raise UserError(f"{benchmark}: the problems aren't those of {baseline.name}; scores don't compare")
        for temperature, scores in facts["scores"].items():
            if temperature in others["scores"]:
                found = True
                yield benchmark, temperature, compare(scores, others["scores"][temperature])
            else:
                print(
                    f"warning: {benchmark} at {temperature}: not compared; {baseline.name} doesn't have it",
                    file=sys.stderr,
                )
    if not found:
        raise UserError(
            f"{baseline.name} has no benchmark at a temperature that was measured here: it has "
            + ", ".join(f"{name} ({', '.join(facts['scores'])})" for name, facts in baseline.benchmarks.items())
        )
