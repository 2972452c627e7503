"""The command line that the step tools share: RECIPE --step NAME [key=value ...]."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


def step_tool(description: str | None, kinds: Sequence[str]) -> int:
    """Runs the step NAME, which must be of one of `kinds`. Returns the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("--step", required=True, metavar="NAME", help="which one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    args = parser.parse_intermixed_args()

    from dasd_megatron.errors import UserError
    from dasd_megatron.launch.main import launch
    from dasd_megatron.recipe.load import load_recipe
    from dasd_megatron.recipe.steps import steps_of

    try:
        steps = steps_of(load_recipe(args.recipe, args.overrides))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    own = [name for name, step in steps.items() if step.kind in kinds]
    if args.step not in own:
        print(f"error: --step {args.step}: not one of {', '.join(own)}", file=sys.stderr)
        return 2
    return launch(args.recipe, args.overrides, dry_run=False, only=[args.step])
