"""Measures a model on benchmarks, without a recipe; or runs one step of a recipe that measures.

Benchmarks: aime24, aime25, gpqa_diamond, livecodebench_v5, livecodebench_v6, humaneval; NAME=FILE for data that is there
already, in the hub's schema or (with a grader) your own. Answers and verdicts stay in the output folder: the same command goes on
where it was, another grader samples nothing. key=value settings are those of a recipe, for what has no option here.

examples:
  {prog} models/Qwen3-4B-Instruct-2507 --benchmark aime24 --benchmark gpqa_diamond
  {prog} models/my-model --benchmark humaneval=HumanEval.jsonl --samples 1 --temperature 0
  {prog} models/my-model --benchmark mine=data/mine.jsonl evaluation.benchmarks.0.grader=math student.response_format=think
  {prog} models/my-model --benchmark aime24 --engine server --endpoint http://node7:8000/v1
  {prog} runs/new/final --benchmark aime24 --against runs/old-evaluation --tolerance 0.01
  {prog} examples/toy/recipe.yaml --step answer_student_arithmetic

exit codes: 0 done; 1 worse than --against by more than --tolerance; 2 a mistake, or a step that failed
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dasd_megatron.cli.exit_code import exit_code_of
from dasd_megatron.utils.errors import UserError

if TYPE_CHECKING:
    from dasd_megatron.evaluation.gate import Baseline


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    parser = _parser(prog)
    args = parser.parse_intermixed_args(arguments)
    if args.step is not None:
        from dasd_megatron.cli.step_command import run_named_step

        return exit_code_of(lambda: run_named_step(args.target, args.overrides, args.step, "evaluate"))
    if args.target.suffix in (".yaml", ".yml"):
        parser.error("of a recipe, one step is run: give --step NAME (dasd launch runs all of them)")
    if args.tolerance < 0:
        parser.error("--tolerance is accuracy that may be lost: at least 0")
    if any(override.startswith("run_dir=") for override in args.overrides):
        parser.error("--output says where answers go; run_dir can't be set beside it")
    if not args.benchmark:
        parser.error("--benchmark says what the model is measured on; there is: aime24, gpqa_diamond, humaneval, ...")
    return exit_code_of(lambda: _evaluate(args))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", type=Path, help="model folder; with --step a recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of a recipe")
    parser.add_argument("--benchmark", action="append", default=[], metavar="NAME[=FILE]", help="repeatable")
    parser.add_argument("--samples", type=int, metavar="N", help="answers a problem at each temperature above 0; 64")
    parser.add_argument("--temperature", type=float, action="append", default=[], metavar="T", help="repeatable; 1.0")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer; the benchmark's own, or 81,920")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first problems of each benchmark")
    parser.add_argument("--engine", default="vllm", metavar="NAME", help="vllm (default), server, or transformers")
    parser.add_argument("--endpoint", action="append", default=[], metavar="URL", help="of --engine server; repeatable")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: runs/evaluate/ and the model's name")
    parser.add_argument(
        "--against", metavar="RUN[:MODEL]", help="folder of another run, or its scores.json, to compare with"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="X", help="accuracy that may be lost; 0.01 is a point"
    )
    parser.add_argument("--step", metavar="NAME", help="run this step of a recipe")
    return parser


def _evaluate(args: argparse.Namespace) -> int:
    import yaml

    from dasd_megatron.cli.launch import run_here
    from dasd_megatron.evaluation.gate import read_scores
    from dasd_megatron.utils.files import write_atomically

    if not args.target.is_dir():
        raise UserError(f"{args.target}: no such model folder")
    output = args.output or Path("runs", "evaluate", args.target.resolve().name)
    baseline = None if args.against is None else read_scores(args.against)  # before hours of answers
    path, content = output / "recipe.yaml", yaml.safe_dump(_recipe(args, output), sort_keys=False)
    output.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(content.encode()))
    run_here(path, args.overrides)
    if baseline is None:
        return 0
    return _compare(str(output), baseline, args.tolerance)


def _recipe(args: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Without training: the student is measured."""
    benchmarks = []
    for text in args.benchmark:
        name, _, path = text.partition("=")
        benchmarks.append(
            {"name": name, **({"path": path} if path else {}), **({} if args.limit is None else {"limit": args.limit})}
        )
    evaluation: dict[str, Any] = {"teacher": False, "benchmarks": benchmarks}
    for key, value in (("samples", args.samples), ("temperatures", args.temperature), ("max_tokens", args.max_tokens)):
        if value not in (None, []):
            evaluation[key] = value
    engine: dict[str, Any] = {"name": args.engine}
    if args.endpoint:
        engine["server"] = {"endpoints": args.endpoint}
    model = {"model": str(args.target)}
    recipe = {"name": "evaluate", "run_dir": str(output), "teacher": model, "student": dict(model), "stages": []}
    return {**recipe, "engine": engine, "evaluation": evaluation}


def _compare(output: str, baseline: Baseline, tolerance: float) -> int:
    """Prints each comparison; 1 where one of them is worse."""
    from dasd_megatron.evaluation.gate import comparisons, read_scores

    worse = False
    for benchmark, temperature, found in comparisons(read_scores(output), baseline):
        fails = found.is_worse(tolerance)
        worse |= fails
        decoded = temperature if temperature == "greedy" else f"T={temperature}"
        print(
            f"{benchmark}, {decoded}: {100 * found.difference:+.1f} points "
            f"against {baseline.name} (95% interval {100 * found.low:+.1f} to {100 * found.high:+.1f}, p={found.p_value:.3f}, "
            f"{found.problems:,} problems){': worse' if fails else ''}"
        )
    return 1 if worse else 0
