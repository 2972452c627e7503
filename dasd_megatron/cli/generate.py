"""Runs one step that reads prompts or samples responses.

Its inputs must be done; `dasd launch RECIPE --dry-run` lists the steps.

examples:
  {prog} examples/toy/recipe.yaml --step sample_low_temperature
  {prog} examples/toy/recipe.yaml --step rollout_mixed_policy launch.replicas=1
"""

from __future__ import annotations

from collections.abc import Sequence

from dasd_megatron.cli.step_command import step_command


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    return step_command(prog, arguments, __doc__, "generate")
