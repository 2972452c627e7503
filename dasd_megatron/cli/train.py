"""Runs one training stage, with torchrun where the recipe's layout has several ranks; or says beforehand what it will take.

To run, its packs and start checkpoint must be done; `dasd launch RECIPE --dry-run` lists the steps. SIGTERM or SIGUSR1
saves and exits with 75; the same command resumes.

examples:
  {prog} examples/toy/recipe.yaml --stage low_temperature
  {prog} examples/toy/recipe.yaml --stage high_temperature parallel.data=1 parallel.tensor=2
  {prog} examples/toy/recipe.yaml --stage low_temperature --estimate --gpu h100
  {prog} examples/toy/recipe.yaml --stage low_temperature --layouts --gpu h100 --gpus 8
  {prog} examples/toy/recipe.yaml --stage low_temperature --dry-run parallel.data=32 training.global_batch=32
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from dasd_megatron.cli.exit_code import exit_code_of
from dasd_megatron.config.gpu_specs import GPU_SPECS
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.stages import StageConfig
from dasd_megatron.utils.errors import UserError


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    parser = _parser(prog)
    args = parser.parse_intermixed_args(arguments)
    if args.gpu and not (args.estimate or args.layouts):
        parser.error("--gpu goes with --estimate and --layouts")
    if args.layouts and not args.gpu:
        parser.error("--layouts needs --gpu")
    if args.mfu and not (args.gpu and args.estimate):
        parser.error("--mfu goes with --estimate --gpu")
    if args.gpus and not args.layouts:
        parser.error("--gpus goes with --layouts")
    return exit_code_of(lambda: _run(args))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=Path, help="recipe file (YAML)")
    parser.add_argument("--stage", required=True, metavar="NAME", help="which training stage")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--estimate", action="store_true", help="print parameters, FLOPs, memory a rank and hours; run nothing"
    )
    what.add_argument(
        "--layouts", action="store_true", help="list the layouts that fit these GPUs, the fastest first; run nothing"
    )
    what.add_argument(
        "--dry-run", action="store_true", help="build each kind of rank of the layout without memory; run nothing"
    )
    parser.add_argument(
        "--gpu",
        choices=GPU_SPECS,
        help="estimate: for this GPU, hours included; without it, for a CPU. layouts: of this GPU",
    )
    parser.add_argument(
        "--gpus", type=_number, metavar="N", help="layouts: how many; as many as the recipe uses by default"
    )
    parser.add_argument(
        "--mfu",
        "--efficiency",
        type=_share,
        metavar="SHARE",
        help="estimate: model FLOPs utilization, as a share of the GPU's peak; the recipe's expected.mfu by default",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    return parser


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is no number of GPUs")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _run(args: argparse.Namespace) -> int:
    from dasd_megatron.config.load import load_recipe
    from dasd_megatron.pipeline.graph import build_steps

    recipe = load_recipe(args.recipe, args.overrides)
    steps = build_steps(_of_any_layout(recipe) if args.layouts else recipe)
    stage = _stage(recipe, args.stage)
    step = steps[f"train_{stage.name}"]
    if args.estimate:
        from dasd_megatron.cli.print_estimate import print_estimate

        print_estimate(recipe, stage, step, args.gpu, args.mfu or recipe.expected.mfu)
    elif args.layouts:
        from dasd_megatron.cli.print_layouts import print_layouts

        print_layouts(recipe, stage, step, args.gpus or recipe.parallel.world_size, args.gpu)
    elif args.dry_run:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when torch is imported: nothing is to be put on a GPU
        from dasd_megatron.training.build_ranks import build_ranks

        training = stage.training.applied_to(recipe.training)
        build_ranks(recipe.student.model, recipe.parallel, training, recipe.memory)
    else:
        from dasd_megatron.runtime.local_runner import run_one

        run_one(step, args.recipe, args.overrides)
    return 0


def _of_any_layout(recipe: Recipe) -> Recipe:
    """To ask for layouts, the recipe's own needs not be possible."""
    parallel = type(recipe.parallel)(distributed_optimizer=recipe.parallel.distributed_optimizer)
    memory = recipe.memory.model_copy(update={"recompute": "none", "recompute_layers": None})
    return recipe.model_copy(update={"parallel": parallel, "memory": memory})


def _stage(recipe: Recipe, name: str) -> StageConfig:
    for stage in recipe.stages:
        if stage.name == name:
            return stage
    raise UserError(f"--stage {name}: not one of {', '.join(stage.name for stage in recipe.stages)}")
