"""Runs one step that measures a model on held-out problems, or writes the report.

Its inputs must be done; `dasd launch RECIPE --dry-run` lists the steps.

examples:
  {prog} examples/toy/recipe.yaml --step evaluate_student
  {prog} examples/toy/recipe.yaml --step report
"""

from __future__ import annotations

from collections.abc import Sequence

from dasd_megatron.cli.step_command import step_command


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    return step_command(prog, arguments, __doc__, "evaluate")
