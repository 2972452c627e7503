"""Runs one recipe in several arms and seeds, and says what the differences between them are.

Steps that arms have in common are made once. Each arm and seed is a run like any other, in STUDY_DIR/ARM/seed-N; the same command
goes on after a kill. It ends with tables, study.html, study.json, study.md and figures in STUDY_DIR.

examples:
  {prog} examples/studies/selection.yaml --dry-run
  {prog} examples/studies/selection.yaml
  {prog} study.yaml --executor slurm --cluster cluster.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dasd_megatron.cli.exit_code import exit_code_of
from dasd_megatron.cli.slurm_options import add_slurm_options, check_slurm_options, require_nemo_run
from dasd_megatron.utils.errors import UserError


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", type=Path, help="study file (YAML)")
    parser.add_argument("--dry-run", action="store_true", help="print how many steps there are, and run nothing")
    add_slurm_options(parser)
    args = parser.parse_args(arguments)
    check_slurm_options(parser, args)
    if args.executor == "local":
        return exit_code_of(lambda: _run_here(args.study, args.dry_run))
    return exit_code_of(lambda: _run_on_slurm(args))


def _run_here(path: Path, dry_run: bool) -> int:
    from dasd_megatron.studies.study import load_study

    study = load_study(path)
    if dry_run:
        from dasd_megatron.studies.dry_run import print_study

        print_study(study)
        return 0
    from dasd_megatron.studies.run_study import run_study
    from dasd_megatron.studies.study_page import conclude

    try:
        run_study(study)
    except UserError:  # a step's; what is there is shown all the same
        conclude(study)
        raise
    conclude(study)
    return 0


def _run_on_slurm(args: argparse.Namespace) -> int:
    require_nemo_run()
    from dasd_megatron.slurm.submit import SubmitOptions
    from dasd_megatron.studies.dry_run import print_study
    from dasd_megatron.studies.slurm_study import jobs_of_study, plan_lines, run_study_on_slurm
    from dasd_megatron.studies.study_page import conclude

    made = jobs_of_study(args.study, args.cluster)
    if args.dry_run:
        print_study(made.study)
        print("\n".join(plan_lines(made)))
        return 0
    options = SubmitOptions(
        args.study,
        (),
        args.cluster,
        watch=args.watch,
        detach=args.detach,
        ship_changes=args.ship_changes,
        not_shipped=(made.study.config.recipe,),
    )
    code = run_study_on_slurm(made, options)
    if not args.detach:
        conclude(made.study)
    return code
