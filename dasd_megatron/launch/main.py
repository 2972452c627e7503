"""What tools/launch.py does."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dasd_megatron.errors import Stopped, UserError
from dasd_megatron.recipe.load import load_recipe
from dasd_megatron.recipe.schema import Recipe
from dasd_megatron.recipe.steps import Step, steps_of


def launch(path: Path, overrides: Sequence[str], dry_run: bool, only: Sequence[str] = ()) -> int:
    """Runs or prints the recipe's steps on this machine. Returns the exit code.

    0 when done, 2 for a mistake of the user or a failed step, 75 (Stopped) when told to stop, 130 for Ctrl-C.
    """
    from dasd_megatron.launch.local import run_all, run_one

    def run() -> int:
        recipe = load_recipe(path, overrides)
        steps = steps_of(recipe)
        if dry_run:
            print_plan(steps)
        elif only:
            from dasd_megatron.launch.run_step import find_step

            for step in [find_step(steps, name, path) for name in only]:
                run_one(step, path, overrides)
        else:
            run_all(recipe, path, overrides, steps)
            print_summary(recipe)
        return 0

    return _exit_code(run)


def launch_on_slurm(**options: Any) -> int:
    """Submits, prints or follows the recipe's steps on a cluster; `options` are those of launch/submit.py's Request.

    Returns the exit code, as `launch` does.
    """

    def run() -> int:
        warnings.filterwarnings("ignore", module="fastapi")  # of a library that NeMo-Run imports
        try:
            from dasd_megatron.launch.submit import Request, submit
        except ModuleNotFoundError as error:
            if error.name != "nemo_run":
                raise
            raise UserError(
                "--executor slurm needs NeMo-Run, which isn't installed: pip install dasd-megatron[launch]"
            ) from None
        return submit(Request(**options))

    return _exit_code(run)


def _exit_code(run: Callable[[], int]) -> int:
    try:
        return run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        if stopped.args:
            print(stopped, file=sys.stderr)
        return Stopped.EXIT_CODE
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def print_plan(steps: Mapping[str, Step]) -> None:
    """One line a step: whether it is done, what it reads, where its artifact is."""
    width = max(map(len, steps))
    for step in steps.values():
        inputs = ", ".join(source.name for source in step.inputs.values()) if step.kind != "report" else "every step"
        print(f"{'done' if step.done else 'to do':5}  {step.name:{width}}  <- {inputs}")
        print(f"{'':5}  {'':{width}}     {step.folder}")
    print(f"{sum(step.done for step in steps.values())} of {len(steps)} steps are done")


def print_summary(recipe: Recipe) -> None:
    """The run's numbers as a table."""
    from rich.console import Console
    from rich.table import Table

    summary = json.loads((recipe.run_dir / "summary.json").read_text())
    table = Table(title=f"{recipe.name}: {summary['evaluated']} held-out problems (mean ± standard error)")
    table.add_column("model")
    for column in ("greedy", *(f"T={name}" for name in summary["sampled_accuracy"]), "KL to teacher, nats"):
        table.add_column(column, justify="right")
    errors = summary["standard_error"]
    for model, accuracy in summary["accuracy"].items():
        table.add_row(
            model.replace("_", " "),
            f"{accuracy:.1%} ± {errors['accuracy'][model]:.1%}",
            *(f"{row[model]:.1%}" for row in summary["sampled_accuracy"].values()),
            f"{summary['alignment'][model]:.2f} ± {errors['alignment'][model]:.2f}",
        )
    Console().print(table)
    print(
        f"{recipe.run_dir}/report.html    the whole run, with figures\n{recipe.run_dir}/final/         the distilled model"
    )
