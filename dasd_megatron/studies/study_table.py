"""A study's results as tables: rows of cells, for the terminal, for Markdown and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dasd_megatron.studies.effects import Estimate
from dasd_megatron.studies.results import KL, Effect, Results

Rows = list[list[str]]


def measure_title(measure: str) -> str:
    """As columns are headed."""
    if measure == KL:
        return "KL, nats"
    return "greedy, %" if measure == "greedy" else f"T={measure}, %"


def arm_rows(results: Results, benchmark: str) -> Rows:
    """A row for each model and arm: mean ± standard error, of seeds and problems; heads first."""
    first = next(iter(results.estimates.values()))[benchmark]
    measures = list(first)
    rows = [["arm", *(_head(measure, first[measure].problems, results.problems[benchmark]) for measure in measures)]]
    for name, found in results.estimates.items():
        cells = [
            _mean(found[benchmark][measure], measure) if measure in found[benchmark] else "" for measure in measures
        ]
        rows.append([label(name), *cells])
    return rows


def comparison_rows(results: Results, benchmark: str) -> Rows:
    """A row for each comparison and measure; heads first."""
    rows = [["question", "measure", "difference", "95% interval", "p", "would be seen"]]
    for comparison in results.comparisons:
        for measure, effect in comparison.effects[benchmark].items():
            rows.append([comparison.name, measure_title(measure), *_effect(effect, measure)])
    return rows


def _head(measure: str, problems: int, all_problems: int) -> str:
    """A column's; KL is over the problems of which the teacher's response ended."""
    return measure_title(measure) + (f", {problems:,} responses" if problems != all_problems else "")


def label(name: str) -> str:
    """An arm's name in a text."""
    return name.replace("_", " ")


def scale(measure: str) -> float:
    """Shares are shown as percentages."""
    return 1.0 if measure == KL else 100.0


def _mean(found: Estimate, measure: str) -> str:
    return f"{scale(measure) * found.mean:.1f} ± {scale(measure) * found.error:.1f}"


def _effect(effect: Effect, measure: str) -> list[str]:
    by, found = scale(measure), effect.difference
    p_value = "< 0.001" if found.p_value < 0.0005 else f"{found.p_value:.3f}"
    interval = f"{by * found.low:+.1f} to {by * found.high:+.1f}"
    seen = f"{by * effect.smallest_seen:.1f}" if effect.smallest_seen else "–"
    return [f"{by * found.mean:+.1f}", interval, p_value, seen]


def markdown_lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown."""
    head, *others = rows
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in others:
        yield f"| {' | '.join(row)} |"
