"""The options of commands that run here or on a Slurm cluster."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from dasd_megatron.utils.errors import UserError


def add_slurm_options(parser: argparse.ArgumentParser) -> None:
    """--executor, and what goes with slurm."""
    parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where; local by default")
    slurm = parser.add_argument_group("with --executor slurm")
    slurm.add_argument("--cluster", type=Path, metavar="FILE", help="cluster file (YAML); see examples/cluster.yaml")
    slurm.add_argument("--detach", action="store_true", help="return once the jobs are submitted")
    slurm.add_argument("--watch", action="store_true", help="follow the jobs that are submitted; submit none")
    slurm.add_argument("--ship-changes", action="store_true", help="ship files that differ from the commit, too")


def check_slurm_options(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends with a message where they contradict one another."""
    if args.executor == "local":
        if args.cluster or args.detach or args.watch or args.ship_changes:
            parser.error("--cluster, --detach, --watch and --ship-changes go with --executor slurm")
        return
    if args.watch and (args.dry_run or args.detach):
        parser.error("--watch follows jobs, and submits or prints none: leave out --dry-run and --detach")
    if args.cluster is None:
        parser.error("--executor slurm needs --cluster FILE; examples/cluster.yaml is one to start from")


def require_nemo_run() -> None:
    """Raises UserError where it isn't installed."""
    warnings.filterwarnings("ignore", module="fastapi")  # of a library that NeMo-Run imports
    try:
        import nemo_run  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "nemo_run":
            raise
        raise UserError(
            "--executor slurm needs NeMo-Run, which isn't installed: pip install dasd-megatron[launch]"
        ) from None
