"""Runs a recipe: every step that isn't done yet, one after another, on this machine or on a Slurm cluster.

examples:
  {prog} examples/toy/recipe.yaml
  {prog} examples/toy/recipe.yaml --dry-run
  {prog} examples/toy/recipe.yaml --rehearse
  {prog} examples/toy/recipe.yaml seed=2 run_dir=runs/toy-2
  {prog} examples/toy/recipe.yaml --only filter_low_temperature
  {prog} examples/toy/recipe.yaml --executor slurm --cluster examples/cluster.yaml --dry-run
  {prog} my.yaml --executor slurm --cluster cluster.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dasd_megatron.cli.exit_code import exit_code_of
from dasd_megatron.cli.slurm_options import add_slurm_options, check_slurm_options, require_nemo_run


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    parser = _parser(prog)
    args = parser.parse_intermixed_args(arguments)
    if args.rehearse and (args.dry_run or args.only or args.detach):
        parser.error("--rehearse runs every step and waits for it: leave out --dry-run, --only and --detach")
    check_slurm_options(parser, args)
    if args.executor == "local":
        if args.rehearse:
            return exit_code_of(lambda: _rehearse_here(args.recipe, args.overrides))
        return exit_code_of(lambda: run_here(args.recipe, args.overrides, args.dry_run, args.only))
    return exit_code_of(lambda: _run_on_slurm(args))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the steps, what is done and, for Slurm, scripts and costs; run nothing",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="run every step on little data in RUN_DIR-rehearsal: does it work, how fast is it, what will the run cost?",
    )
    parser.add_argument(
        "--only",
        metavar="STEP",
        action="append",
        default=[],
        help="run this step, whose inputs must be done; repeatable",
    )
    add_slurm_options(parser)
    return parser


def run_here(path: Path, overrides: Sequence[str], dry_run: bool = False, only: Sequence[str] = ()) -> int:
    """Runs or prints the recipe's steps on this machine. Returns the exit code."""
    from dasd_megatron.config.load import load_recipe
    from dasd_megatron.pipeline.graph import build_steps, find_step

    recipe = load_recipe(path, overrides)
    steps = build_steps(recipe)
    chosen = [find_step(steps, name, path) for name in only]
    if dry_run:
        from dasd_megatron.cli.print_steps import print_steps

        print_steps(chosen or list(steps.values()))
        return 0
    from dasd_megatron.report.summary_table import print_summary
    from dasd_megatron.runtime.local_runner import run_all, run_one

    if chosen:
        for step in chosen:
            run_one(step, path, overrides)
    else:
        run_all(recipe, path, overrides, steps)
        print_summary(recipe)
    return 0


def _rehearse_here(path: Path, overrides: Sequence[str]) -> int:
    from dasd_megatron.rehearsal.rehearse import rehearse_here

    return rehearse_here(path, overrides)


def _run_on_slurm(args: argparse.Namespace) -> int:
    """Submits, prints or follows the recipe's steps on a cluster. Returns the exit code."""
    require_nemo_run()
    from dasd_megatron.slurm.submit import SubmitOptions, submit

    options = {name: value for name, value in vars(args).items() if name not in ("executor", "rehearse")}
    if args.rehearse:
        from dasd_megatron.rehearsal.rehearse import rehearse_on_slurm

        return rehearse_on_slurm(SubmitOptions(**options))
    return submit(SubmitOptions(**options))
