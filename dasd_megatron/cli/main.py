"""The `dasd` command: its subcommands, each loaded when it is called."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from dasd_megatron import __version__

# Name, also of the module here with `main(prog, arguments)` -> what it does in a line.
COMMANDS = {
    "launch": "run a recipe, on this machine or on a Slurm cluster; or print what it would do and cost",
    "train": "run one training stage, or estimate its memory and hours",
    "convert": "convert checkpoints between Hugging Face and Megatron, and prove it",
    "generate": "run one step that reads prompts or samples responses",
    "score": "run one step that scores responses under the student",
    "curate": "run one step that filters, selects or packs responses",
    "evaluate": "measure a model on benchmarks, or run one step of a recipe that measures",
    "grade": "grade responses that are in a file already",
    "release": "make folders of a finished run that can be published, and upload them",
    "study": "run a recipe in several arms and seeds, and tell what the differences are",
    "settings": "print every setting of a recipe with its default and its meaning",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    width = max(map(len, COMMANDS))
    parser = argparse.ArgumentParser(
        prog="dasd",
        description="Distribution-aligned sequence distillation of reasoning models on Megatron-Core.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n"
        + "\n".join(f"  {name:{width}}  {help}" for name, help in COMMANDS.items())
        + "\n\ndasd COMMAND --help says more.",
    )
    parser.add_argument("--version", action="version", version=f"dasd-megatron {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    args = parser.parse_args(arguments)
    module = importlib.import_module(f"dasd_megatron.cli.{args.command}")
    try:
        code: int = module.main(f"dasd {args.command}", args.arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `dasd settings | head`: whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


if __name__ == "__main__":
    sys.exit(main())
