#!/usr/bin/env python
"""Converts checkpoints between Hugging Face safetensors and Megatron's distributed format, and proves it. Needs no GPU.

A Megatron checkpoint that is written here or by training loads in any parallel layout, and carries the model's config,
tokenizer and chat template.

examples:
  python tools/convert.py inspect examples/toy/student
  python tools/convert.py import --hf examples/toy/student --megatron /tmp/student-megatron
  python tools/convert.py verify --hf examples/toy/student --megatron /tmp/student-megatron
  python tools/convert.py export --megatron /tmp/student-megatron --hf /tmp/student-hf

exit codes: 0 done, or the same model; 1 verify found a difference; 2 it can't be done (and why); 130 stopped
"""

import argparse
import signal
import sys
from pathlib import Path


def main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(parse())
    except KeyboardInterrupt:
        print("stopped; nothing was left behind", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    from dasd_megatron.errors import UserError

    try:
        if args.command == "import":
            return import_model(args)
        if args.command == "export":
            return export_model(args)
        if args.command == "verify":
            return verify_model(args)
        from conversion.describe import describe

        print(describe(args.folder))
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    verifying.add_argument("--tensor-parallel", type=ranks, default=1, metavar="N", help="ranks to split matrices over")
    verifying.add_argument("--pipeline-parallel", type=ranks, default=1, metavar="N", help="ranks to split layers over")
    verifying.add_argument("--expert-parallel", type=ranks, default=1, metavar="N", help="ranks to split experts over")
    return parser.parse_args()


def ranks(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number


def import_model(args: argparse.Namespace) -> int:
    from conversion.aside import written_aside
    from conversion.convert import import_hf
    from conversion.hf_model import dtype_named

    with written_aside(args.megatron) as folder:
        converted = import_hf(args.hf, folder, dtype_named(args.dtype) if args.dtype else None)
    print(f"{args.megatron}: {converted}")
    return 0


def export_model(args: argparse.Namespace) -> int:
    from conversion.aside import written_aside
    from conversion.convert import export_hf

    with written_aside(args.hf) as folder:
        converted = export_hf(args.megatron, folder, args.like)
    print(f"{args.hf}: {converted}")
    return 0


def verify_model(args: argparse.Namespace) -> int:
    from conversion.verify import card_path, verify
    from dasd_megatron.recipe.schema import Parallel

    tensor, expert = args.tensor_parallel, args.expert_parallel
    parallel = Parallel(tensor=tensor, pipeline=args.pipeline_parallel, expert=expert, data=max(1, expert // tensor))
    card = verify(args.hf, args.megatron, parallel)
    print(f"{card}\n{card_path(args.megatron)}")
    return 1 if card.problems else 0


if __name__ == "__main__":
    sys.exit(main())
