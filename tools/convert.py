#!/usr/bin/env python
"""Converts checkpoints between Hugging Face safetensors and Megatron's distributed format. Needs no GPU.

examples:
  python tools/convert.py import --hf examples/toy/student --megatron /tmp/student-megatron
  python tools/convert.py export --megatron /tmp/student-megatron --like examples/toy/student --hf /tmp/student-hf
"""

import argparse
import sys
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="Hugging Face to Megatron")
    importing.add_argument("--hf", type=Path, required=True, help="model folder to read")
    importing.add_argument("--megatron", type=Path, required=True, help="checkpoint folder to write; must not exist")
    exporting = commands.add_parser("export", help="Megatron to Hugging Face")
    exporting.add_argument("--megatron", type=Path, required=True, help="checkpoint folder to read")
    exporting.add_argument(
        "--like", type=Path, required=True, help="model folder that gives config, tokenizer and templates"
    )
    exporting.add_argument("--hf", type=Path, required=True, help="model folder to write; must not exist")
    args = parser.parse_args()

    from dasd_megatron.errors import UserError

    try:
        target = args.megatron if args.command == "import" else args.hf
        if target.exists():
            raise UserError(f"{target}: exists already; name a new folder, or remove this one first")
        from conversion.convert import convert_aside, export_hf, import_hf

        if args.command == "import":
            counts = import_hf(args.hf, args.megatron)
        else:
            counts = convert_aside(args.hf, lambda folder: export_hf(args.megatron, args.like, folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{target}: {counts['tensors']} tensors, {counts['parameters']:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
