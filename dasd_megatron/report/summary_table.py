"""A finished run's numbers as a table on the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from dasd_megatron.config.recipe import Recipe


def print_summary(recipe: Recipe) -> None:
    """The run's numbers, a table for each benchmark."""
    summary = json.loads((recipe.run_dir / "summary.json").read_text())
    for benchmark, facts in summary["benchmarks"].items():
        Console().print(benchmark_table(f"{recipe.name}: {benchmark}", facts))
    print(f"{recipe.run_dir}/report.html    the whole run, with figures")
    if recipe.stages:
        print(f"{recipe.run_dir}/final/         the distilled model")


def benchmark_table(title: str, facts: Mapping[str, Any]) -> Table:
    """Accuracy of each model (mean ± standard error over problems), and the distance from the teacher."""
    measures = facts["measures"]
    table = Table(title=f"{title}, {facts['problems']:,} problems (mean ± standard error)")
    table.add_column("model")
    temperatures = list(next(iter(measures.values())))
    for temperature in temperatures:
        samples = next(iter(measures.values()))[temperature]["samples"]
        sampled = temperature if temperature == "greedy" else f"T={temperature}"
        table.add_column(sampled if samples == 1 else f"{sampled}, avg@{samples}", justify="right")
    if facts["alignment"]:
        table.add_column("KL to teacher", justify="right")
    for model, by_temperature in measures.items():
        aligned = facts["alignment"].get(model)
        table.add_row(
            model.replace("_", " "),
            *(_share(by_temperature[temperature]["accuracy"]) for temperature in temperatures),
            *([] if aligned is None else [f"{aligned['mean']:.2f} ± {aligned['standard_error']:.2f}"]),
        )
    return table


def _share(measured: Mapping[str, float]) -> str:
    return f"{measured['mean']:.1%} ± {measured['standard_error']:.1%}"
