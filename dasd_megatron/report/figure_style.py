"""How figures look, and how they become SVG."""

from __future__ import annotations

import io

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID = "#334155", "#e2e8f0"
COLORS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#64748b")

plt.rcParams.update(
    {
        "svg.hashsalt": "report",  # the same numbers give the same file
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": INK,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": GRID,
        "legend.frameon": False,
    }
)


def new_figure(height: float = 3.8, width: float = 6.4) -> tuple[Figure, Axes]:
    """Inches."""
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    return figure, axes


def as_svg(figure: Figure) -> str:
    """Closes the figure."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, dpi=160)
    plt.close(figure)
    return file.getvalue()[file.getvalue().index("<svg") :]
