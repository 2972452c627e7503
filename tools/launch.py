#!/usr/bin/env python
"""Runs a recipe: every step that isn't done yet, one after another.

examples:
  python tools/launch.py examples/toy/recipe.yaml
  python tools/launch.py examples/toy/recipe.yaml --dry-run
  python tools/launch.py examples/toy/recipe.yaml seed=2 run_dir=runs/toy-2
  python tools/launch.py examples/toy/recipe.yaml --only filter_low_temperature
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the steps, their inputs and what is done, and stop"
    )
    parser.add_argument("--only", metavar="STEP", help="run one step, whose inputs must be done")
    args = parser.parse_intermixed_args()

    from dasd_megatron.launch.main import launch

    return launch(args.recipe, args.overrides, dry_run=args.dry_run, only=args.only)


if __name__ == "__main__":
    sys.exit(main())
