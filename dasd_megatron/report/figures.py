"""The report's figures, each one function of plain numbers, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dasd_megatron.report.figure_style import COLORS, INK, as_svg, new_figure

KIND_COLORS = {"Teacher": "#2563eb", "Student": "#ea580c", "Shared": "#94a3b8"}


def accuracy_by_stage(measures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Bars of accuracy with their intervals, one group a model, one bar a temperature: {model: {temperature: measures}}."""
    figure, axes = new_figure()
    temperatures = list(next(iter(measures.values())))
    width = 0.8 / len(temperatures)
    for index, temperature in enumerate(temperatures):
        found = [row[temperature]["accuracy"] for row in measures.values()]
        places = np.arange(len(measures)) + (index - (len(temperatures) - 1) / 2) * width
        label = temperature if temperature == "greedy" else f"T={temperature}"
        _bars(axes, places, found, width * 0.92, COLORS[index % len(COLORS)], label)
    axes.set_xticks(range(len(measures)), [_label(name) for name in measures])
    axes.set_ylabel("accuracy, % (95% interval)")
    axes.set_ylim(0, 105)
    axes.legend(ncols=len(temperatures), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.grid(axis="x", visible=False)
    return as_svg(figure)


def accuracy_by_benchmark(measures: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> str:
    """Bars of accuracy at the highest temperature with their intervals, one group a benchmark, one bar a model."""
    figure, axes = new_figure(width=13.4)
    models = list(next(iter(measures.values())))
    width = 0.8 / len(models)
    for index, model in enumerate(models):
        found = [list(rows[model].values())[-1]["accuracy"] for rows in measures.values()]
        places = np.arange(len(measures)) + (index - (len(models) - 1) / 2) * width
        _bars(axes, places, found, width * 0.92, COLORS[index % len(COLORS)], _label(model, " "))
    axes.set_xticks(range(len(measures)), list(measures))
    axes.set_ylabel("accuracy, % (95% interval)")
    axes.set_ylim(0, 105)
    axes.legend(ncols=len(models), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    axes.grid(axis="x", visible=False)
    return as_svg(figure)


def length_by_stage(measures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Mean length of the answers at the highest temperature, and the share that was truncated, by model."""
    figure, axes = new_figure()
    rows = [list(row.values())[-1] for row in measures.values()]
    bars = axes.bar([_label(name) for name in measures], [row["tokens"]["mean"] for row in rows], 0.6, color=COLORS[4])
    axes.bar_label(bars, [f"{row['truncated']:.1%} truncated" for row in rows], padding=3)
    axes.set_ylabel("tokens of an answer")
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    return as_svg(figure)


def alignment_by_stage(alignment: Mapping[str, Mapping[str, float]]) -> str:
    """Bars of KL(teacher || model), nats a response."""
    figure, axes = new_figure()
    means = [row["mean"] for row in alignment.values()]
    bars = axes.bar(
        [_label(name) for name in alignment],
        means,
        0.6,
        yerr=[row["standard_error"] for row in alignment.values()],
        color=COLORS[3],
        error_kw={"ecolor": INK},
    )
    axes.bar_label(bars, [f"{mean:.2f}" for mean in means], padding=3)
    axes.set_ylabel("KL to the teacher, nats a response")
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    return as_svg(figure)


def loss_by_stage(losses: Mapping[str, Sequence[float]], held_out: Mapping[str, Mapping[int, float]]) -> str:
    """Loss over all stages, one after another: of each step's packs (a line), and by step of those held out (points)."""
    figure, axes = new_figure()
    first = 0
    for index, (stage, values) in enumerate(losses.items()):
        color = COLORS[index % len(COLORS)]
        axes.plot(range(first + 1, first + len(values) + 1), values, color=color, label=_label(stage, " "))
        points = held_out.get(stage, {})
        if points:
            steps = [first + step for step in points]
            label = f"{_label(stage, ' ')}, held out"
            axes.plot(steps, list(points.values()), "o", color=color, markeredgecolor=INK, label=label)
        first += len(values)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.set_ylim(bottom=0)
    axes.legend()
    return as_svg(figure)


def probability_density(by_temperature: Mapping[str, Sequence[float]]) -> str:
    """Density of the responses' probability (geometric mean over their tokens) at each temperature (paper, figures 3, 4)."""
    figure, axes = new_figure()
    lowest = min(min(values) for values in by_temperature.values())
    edges = np.linspace(max(0.0, lowest), 1.0, 41).tolist()
    for index, (temperature, values) in enumerate(by_temperature.items()):
        axes.hist(values, edges, density=True, histtype="stepfilled", alpha=0.25, color=COLORS[index % len(COLORS)])
        axes.hist(
            values, edges, density=True, histtype="step", color=COLORS[index % len(COLORS)], label=f"T={temperature}"
        )
    axes.set_xlabel("probability of a response, geometric mean a token")
    axes.set_ylabel("density")
    axes.legend(loc="upper left")
    return as_svg(figure)


def sentence_scatter(teacher: Sequence[float], student: Sequence[float], kinds: Sequence[str], threshold: float) -> str:
    """Teacher against student probability of each sentence, coloured by kind."""
    figure, axes = new_figure(5.2)
    for kind, color in KIND_COLORS.items():
        chosen = [index for index, own in enumerate(kinds) if own == kind]
        share = len(chosen) / max(1, len(kinds))
        axes.scatter(
            [student[i] for i in chosen],
            [teacher[i] for i in chosen],
            6,
            color=color,
            alpha=0.4,
            linewidths=0,
            rasterized=True,  # thousands of dots would make a page of megabytes
            label=f"{kind} {share:.0%}",
        )
    axes.plot([0, 1 - threshold], [threshold, 1], color=INK, linewidth=0.8, linestyle="--")
    axes.plot([threshold, 1], [0, 1 - threshold], color=INK, linewidth=0.8, linestyle="--")
    axes.set_xlabel("student's probability of a sentence")
    axes.set_ylabel("teacher's")
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), markerscale=2)
    return as_svg(figure)


def dropped_by_reason(dropped: Mapping[str, Mapping[str, int]]) -> str:
    """Stacked bars of dropped rows: {step: {reason: rows}}."""
    reasons = sorted({reason for row in dropped.values() for reason in row})
    figure, axes = new_figure(0.45 * len(dropped) + 2.0)
    left = np.zeros(len(dropped))
    for index, reason in enumerate(reasons):
        values = np.array([row.get(reason, 0) for row in dropped.values()])
        color = COLORS[index % len(COLORS)]
        axes.barh(
            [_label(step, " ") for step in dropped], values, 0.6, left=left, color=color, label=_label(reason, " ")
        )
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("rows")
    axes.grid(axis="y", visible=False)
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return as_svg(figure)


def truncated_by_length(teacher_tokens: Sequence[float], truncated: Sequence[bool], bins: int = 6) -> str:
    """Share of the student's answers that were truncated, by the length of the teacher's response."""
    figure, axes = new_figure()
    order = np.argsort(teacher_tokens, kind="stable")
    groups = [group for group in np.array_split(order, bins) if len(group)]
    lengths, cut = np.asarray(teacher_tokens), np.asarray(truncated)
    labels = [f"{lengths[group].min():.0f}-{lengths[group].max():.0f}" for group in groups]
    bars = axes.bar(range(len(groups)), [100 * cut[group].mean() for group in groups], 0.7, color=COLORS[1])
    axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.set_xticks(range(len(groups)), labels)
    axes.set_xlabel("teacher's length, tokens of the student (bins of equal size)")
    axes.set_ylabel("truncated, %")
    axes.margins(y=0.15)
    axes.grid(axis="x", visible=False)
    return as_svg(figure)


def seconds_by_step(seconds: Mapping[str, float]) -> str:
    """Horizontal bars of wall-clock time."""
    figure, axes = new_figure(0.26 * len(seconds) + 0.9)
    bars = axes.barh([_label(step, " ") for step in seconds], list(seconds.values()), 0.7, color=COLORS[4])
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.grid(axis="y", visible=False)
    return as_svg(figure)


def _bars(
    axes: Axes, places: NDArray[Any], measured: Sequence[Mapping[str, float]], width: float, color: str, label: str
) -> None:
    """Means in percent with their intervals."""
    means, low, high = (np.array([100 * row[name] for row in measured]) for name in ("mean", "low", "high"))
    error = np.stack([means - low, high - means])
    axes.bar(places, means, width, yerr=error, color=color, label=label, error_kw={"ecolor": INK})


def _label(name: str, separator: str = "\n") -> str:
    return name.replace("_", separator)
