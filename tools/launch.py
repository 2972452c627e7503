#!/usr/bin/env python
"""Runs a recipe: every step that isn't done yet, one after another, on this machine or on a Slurm cluster.

examples:
  python tools/launch.py examples/toy/recipe.yaml
  python tools/launch.py examples/toy/recipe.yaml --dry-run
  python tools/launch.py examples/toy/recipe.yaml seed=2 run_dir=runs/toy-2
  python tools/launch.py examples/toy/recipe.yaml --only filter_low_temperature
  python tools/launch.py examples/dasd_4b/recipe.yaml --executor slurm --cluster examples/cluster.yaml --dry-run
  python tools/launch.py examples/dasd_4b/recipe.yaml --executor slurm --cluster examples/cluster.yaml
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the steps, what is done and, for Slurm, scripts and costs; run nothing",
    )
    parser.add_argument(
        "--only",
        metavar="STEP",
        action="append",
        default=[],
        help="run this step, whose inputs must be done; repeatable",
    )
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where; local by default")
    slurm = parser.add_argument_group("with --executor slurm")
    slurm.add_argument("--cluster", type=Path, metavar="FILE", help="cluster file (YAML); see examples/cluster.yaml")
    slurm.add_argument("--detach", action="store_true", help="return once the jobs are submitted")
    slurm.add_argument("--watch", action="store_true", help="follow the run's jobs; submit none")
    slurm.add_argument("--ship-changes", action="store_true", help="ship files that differ from the commit, too")
    args = parser.parse_intermixed_args()
    if args.executor == "local":
        if args.cluster or args.detach or args.watch or args.ship_changes:
            parser.error("--cluster, --detach, --watch and --ship-changes go with --executor slurm")

        from dasd_megatron.launch.main import launch

        return launch(args.recipe, args.overrides, dry_run=args.dry_run, only=args.only)
    if args.watch and (args.dry_run or args.detach):
        parser.error("--watch follows jobs, and submits or prints none: leave out --dry-run and --detach")
    if args.cluster is None:
        parser.error("--executor slurm needs --cluster FILE; examples/cluster.yaml is one to start from")

    from dasd_megatron.launch.main import launch_on_slurm

    options = {name: value for name, value in vars(args).items() if name != "executor"}
    return launch_on_slurm(**options)


if __name__ == "__main__":
    sys.exit(main())
