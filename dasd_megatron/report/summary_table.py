"""A finished run's numbers as a table on the terminal."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from dasd_megatron.config.recipe import Recipe


def print_summary(recipe: Recipe) -> None:
    """The run's numbers as a table."""
    summary = json.loads((recipe.run_dir / "summary.json").read_text())
    table = Table(title=f"{recipe.name}: {summary['evaluated']} held-out problems (mean ± standard error)")
    table.add_column("model")
    distance = ["KL to teacher, nats"] if summary["alignment"] else []
    for column in ("greedy", *(f"T={name}" for name in summary["sampled_accuracy"]), *distance):
        table.add_column(column, justify="right")
    errors = summary["standard_error"]
    for model, accuracy in summary["accuracy"].items():
        table.add_row(
            model.replace("_", " "),
            f"{accuracy:.1%} ± {errors['accuracy'][model]:.1%}",
            *(f"{row[model]:.1%}" for row in summary["sampled_accuracy"].values()),
            *(f"{summary['alignment'][model]:.2f} ± {errors['alignment'][model]:.2f}" for _ in distance),
        )
    Console().print(table)
    print(
        f"{recipe.run_dir}/report.html    the whole run, with figures\n{recipe.run_dir}/final/         the distilled model"
    )
