"""Runs one step that scores the teacher's responses under the student.

Its inputs must be done; `dasd launch RECIPE --dry-run` lists the steps.

examples:
  {prog} examples/toy/recipe.yaml --step score_low_temperature
"""

from __future__ import annotations

from collections.abc import Sequence

from dasd_megatron.cli.step_command import step_command


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    return step_command(prog, arguments, __doc__, "score")
