"""Converts checkpoints between Hugging Face safetensors and Megatron's distributed format, and proves it. Needs no GPU.

A Megatron checkpoint that is written here or by training loads in any parallel layout, and holds the model's config,
tokenizer and chat template.

examples:
  {prog} inspect examples/toy/student
  {prog} import --hf examples/toy/student --megatron /tmp/student-megatron
  {prog} verify --hf examples/toy/student --megatron /tmp/student-megatron
  {prog} export --megatron /tmp/student-megatron --hf /tmp/student-hf

exit codes: 0 done, or the same model; 1 verify found a difference; 2 it can't be done (and why); 130 stopped
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from dasd_megatron.utils.errors import UserError


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(_parser(prog).parse_args(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was left behind", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace) -> int:
    if args.command == "import":
        return _import(args)
    if args.command == "export":
        return _export(args)
    if args.command == "verify":
        return _verify(args)
    from conversion.describe import describe

    print(describe(args.folder))
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="Hugging Face to Megatron")
    importing.add_argument("--hf", type=Path, required=True, help="model folder to read")
    importing.add_argument("--megatron", type=Path, required=True, help="checkpoint folder to write; must not exist")
    importing.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="type of the weights; default: the one they have"
    )
    exporting = commands.add_parser("export", help="Megatron to Hugging Face")
    exporting.add_argument("--megatron", type=Path, required=True, help="checkpoint folder to read")
    exporting.add_argument("--hf", type=Path, required=True, help="model folder to write; must not exist")
    exporting.add_argument(
        "--like",
        type=Path,
        help="model folder that gives config, tokenizer and templates; default: the checkpoint's own",
    )
    inspecting = commands.add_parser(
        "inspect", help="say what a folder of either kind holds, and what can be converted"
    )
    inspecting.add_argument("folder", type=Path, help="model folder, or checkpoint folder")
    verifying = commands.add_parser("verify", help="compare tensors and logits with transformers, and write a card")
    verifying.add_argument("--hf", type=Path, required=True, help="model folder")
    verifying.add_argument(
        "--megatron",
        type=Path,
        required=True,
        help="checkpoint; NAME.verification.json goes beside it",
    )
    verifying.add_argument(
        "--tensor-parallel", type=_ranks, default=1, metavar="N", help="ranks to split matrices over"
    )
    verifying.add_argument(
        "--pipeline-parallel", type=_ranks, default=1, metavar="N", help="ranks to split layers over"
    )
    verifying.add_argument("--expert-parallel", type=_ranks, default=1, metavar="N", help="ranks to split experts over")
    return parser


def _ranks(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number


def _import(args: argparse.Namespace) -> int:
    from conversion.convert import import_hf
    from conversion.output_folder import new_folder
    from dasd_megatron.models.hf_model import dtype_named

    with new_folder(args.megatron) as folder:
        converted = import_hf(args.hf, folder, dtype_named(args.dtype) if args.dtype else None)
    print(f"{args.megatron}: {converted}")
    return 0


def _export(args: argparse.Namespace) -> int:
    from conversion.convert import export_hf
    from conversion.output_folder import new_folder

    with new_folder(args.hf) as folder:
        converted = export_hf(args.megatron, folder, args.like)
    print(f"{args.hf}: {converted}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from conversion.verify import card_path, verify
    from dasd_megatron.config.training import ParallelConfig

    tensor, expert = args.tensor_parallel, args.expert_parallel
    parallel = ParallelConfig(
        tensor=tensor, pipeline=args.pipeline_parallel, expert=expert, data=max(1, expert // tensor)
    )
    card = verify(args.hf, args.megatron, parallel)
    print(f"{card}\n{card_path(args.megatron)}")
    return 1 if card.problems else 0
