"""A study's figures, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dasd_megatron.report.figure_style import COLORS, INK, as_svg, new_figure
from dasd_megatron.studies.effects import Estimate
from dasd_megatron.studies.results import KL, Compared
from dasd_megatron.studies.study_table import label, measure_title, scale

# Ratio of distances above which they are drawn by their logarithm.
WIDE = 5.0


def arms_by_measure(estimates: Mapping[str, Estimate], measure: str) -> str:
    """A point with its 95% interval for each model and arm, one above another."""
    figure, axes = new_figure(0.34 * len(estimates) + 1.0)
    by = scale(measure)
    for place, found in enumerate(estimates.values()):
        low, high = (found.low, found.high) if measure == KL else (max(found.low, 0.0), min(found.high, 1.0))
        axes.plot([by * low, by * high], [place, place], color=COLORS[0], linewidth=2)
        axes.plot(by * found.mean, place, "o", color=COLORS[0])
    axes.set_yticks(range(len(estimates)), map(label, estimates))
    axes.invert_yaxis()
    axes.set_xlabel("KL to the teacher, nats a response" if measure == KL else f"accuracy, {measure_title(measure)}")
    return as_svg(figure)


def differences_by_question(comparisons: Sequence[Compared], benchmark: str, measure: str) -> str:
    """A point with its 95% interval for each comparison; grey: what is too small for this study to find."""
    figure, axes = new_figure(0.34 * len(comparisons) + 1.0)
    by = scale(measure)
    for place, comparison in enumerate(comparisons):
        effect = comparison.effects[benchmark][measure]
        found, unseen = effect.difference, by * effect.smallest_seen
        axes.barh(place, 2 * unseen, 0.6, left=-unseen, color=COLORS[4], alpha=0.18, linewidth=0)
        axes.plot([by * found.low, by * found.high], [place, place], color=COLORS[1], linewidth=2)
        axes.plot(by * found.mean, place, "o", color=COLORS[1])
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(comparisons)), [comparison.name for comparison in comparisons])
    axes.invert_yaxis()
    unit = "nats" if measure == KL else "points"
    axes.set_xlabel(f"difference in {measure_title(measure).partition(',')[0]}, {unit}")
    return as_svg(figure)


def accuracy_against_alignment(estimates: Mapping[str, Mapping[str, Estimate]], measure: str) -> str:
    """Each arm as a point: its accuracy, and its distance from the teacher."""
    figure, axes = new_figure(5.0)
    for number, (name, found) in enumerate(estimates.items()):
        x, y = found[KL], found[measure]
        color = COLORS[number % len(COLORS)]
        axes.errorbar(x.mean, 100 * y.mean, 100 * y.error, x.error, "o", color=color)
        axes.annotate(label(name), (x.mean, 100 * y.mean), xytext=(6, 4), textcoords="offset points", fontsize=8)
    distances = [found[KL].mean for found in estimates.values()]
    if min(distances) > 0 and max(distances) > WIDE * min(distances):
        axes.set_xscale("log")
    axes.set_xlabel("KL to the teacher, nats a response (± standard error)")
    axes.set_ylabel(f"accuracy, {measure_title(measure)} (± standard error)")
    return as_svg(figure)
