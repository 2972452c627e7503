"""What tools/train.py does: runs a stage, or says beforehand what it will take."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dasd_megatron.errors import UserError
from dasd_megatron.recipe.estimate import GPUS
from dasd_megatron.recipe.schema import Recipe, Stage


def main(description: str | None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("--stage", required=True, metavar="NAME", help="which training stage")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--estimate", action="store_true", help="print parameters, FLOPs, memory a rank and hours; run nothing"
    )
    what.add_argument(
        "--dry-run", action="store_true", help="build each kind of rank of the layout without memory; run nothing"
    )
    parser.add_argument("--gpu", choices=GPUS, help="estimate: for this GPU, hours included; without it, for a CPU")
    parser.add_argument(
        "--efficiency",
        type=_share,
        metavar="SHARE",
        help="estimate: share of the GPU's peak; the recipe's expected.flops_share by default",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    args = parser.parse_intermixed_args()
    if args.gpu and not args.estimate:
        parser.error("--gpu goes with --estimate")
    if args.efficiency and not args.gpu:
        parser.error("--efficiency goes with --gpu")

    from dasd_megatron.recipe.load import load_recipe
    from dasd_megatron.recipe.steps import steps_of

    try:
        recipe = load_recipe(args.recipe, args.overrides)
        steps = steps_of(recipe)
        stage = _stage(recipe, args.stage)
        step = steps[f"train_{stage.name}"]
        if args.estimate:
            from dasd_megatron.launch.print_estimate import print_estimate

            print_estimate(recipe, stage, step, args.gpu, args.efficiency or recipe.expected.flops_share)
            return 0
        if args.dry_run:
            return _dry_run(recipe, stage)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return _run(args.recipe, args.overrides, step.name)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _stage(recipe: Recipe, name: str) -> Stage:
    for stage in recipe.stages:
        if stage.name == name:
            return stage
    raise UserError(f"--stage {name}: not one of {', '.join(stage.name for stage in recipe.stages)}")


def _run(recipe: Path, overrides: Sequence[str], step: str) -> int:
    from dasd_megatron.launch.main import launch

    return launch(recipe, overrides, dry_run=False, only=[step])


def _dry_run(recipe: Recipe, stage: Stage) -> int:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when torch is imported: nothing is to be put on a GPU
    from dasd_megatron.training.dry_run import dry_run

    dry_run(recipe.student.model, recipe.parallel, recipe.stage_training(stage), recipe.memory)
    return 0
