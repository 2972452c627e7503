"""The command line that the commands for single steps share: RECIPE --step NAME [key=value ...]."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dasd_megatron.cli.exit_code import exit_code_of
from dasd_megatron.utils.errors import UserError


def step_command(prog: str, arguments: Sequence[str], description: str | None, command: str) -> int:
    """Runs the step NAME, which must be of a kind that `command` runs. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(description or "").format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("--step", required=True, metavar="NAME", help="which one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    args = parser.parse_intermixed_args(arguments)
    return exit_code_of(lambda: run_named_step(args.recipe, args.overrides, args.step, command))


def run_named_step(recipe: Path, overrides: Sequence[str], name: str, command: str) -> int:
    """Runs the step of this name, which must be of a kind that `command` runs. Raises UserError."""
    from dasd_megatron.config.load import load_recipe
    from dasd_megatron.pipeline.graph import build_steps
    from dasd_megatron.runtime.local_runner import run_one

    steps = build_steps(load_recipe(recipe, overrides))
    own = [step.name for step in steps.values() if step.kind.command == command]
    if name not in own:
        raise UserError(f"--step {name}: not one of {', '.join(own)}")
    run_one(steps[name], recipe, overrides)
    return 0
