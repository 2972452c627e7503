"""Makes folders of a finished run that can be published: the model and the data that it was trained on, each with its card.

RUN/release/model is a Hugging Face checkpoint whose chat template has the system prompt of training; RUN/release/data is Parquet
in the schema of the paper's authors, with the teacher's log-probabilities. Cards, checksums and licence notes are written from
the run's manifests. Nothing is uploaded without --push.

examples:
  {prog} runs/toy
  {prog} runs/dasd_4b --base-model Qwen/Qwen3-4B-Instruct-2507 --teacher openai/gpt-oss-120b --license apache-2.0
  {prog} runs/dasd_4b --push my-lab/DASD-4B --dry-run
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from dasd_megatron.cli.exit_code import exit_code_of
from dasd_megatron.utils.errors import UserError


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: RUN/release")
    parser.add_argument("--base-model", metavar="OWNER/NAME", help="what the hub calls the student before training")
    parser.add_argument("--teacher", metavar="OWNER/NAME", help="what the hub calls the teacher")
    parser.add_argument("--license", metavar="ID", help="such as apache-2.0; default: what the base model's card says")
    parser.add_argument("--no-data", action="store_true", help="the model alone")
    push = parser.add_argument_group("upload")
    push.add_argument(
        "--push", metavar="OWNER/NAME", help="upload to this model repository, and data set of the same name"
    )
    push.add_argument(
        "--dry-run", action="store_true", help="make the folders, list what would be uploaded, upload nothing"
    )
    push.add_argument("--private", action="store_true", help="repositories that don't exist yet are made private")
    push.add_argument(
        "--token-env", default="HF_TOKEN", metavar="NAME", help="environment variable of the token; HF_TOKEN"
    )
    args = parser.parse_args(arguments)
    if args.push is None and (args.dry_run or args.private):
        parser.error("--dry-run and --private go with --push")
    return exit_code_of(lambda: _release(args))


def _release(args: argparse.Namespace) -> int:
    from dasd_megatron.release.finished_run import FinishedRun
    from dasd_megatron.release.release import ReleaseOptions, make_release
    from dasd_megatron.release.upload import check_repository, read_token, upload

    for option, name in (("--base-model", args.base_model), ("--teacher", args.teacher), ("--license", args.license)):
        if name is not None and not re.fullmatch(r"[\w.-]+(?:/[\w.-]+)?", name, re.ASCII):
            raise UserError(f"{option}: {name!r} is no name on the hub: letters, digits, '-', '_' and '.'")
    token = ""
    if args.push is not None:
        check_repository(args.push)
        token = "" if args.dry_run else read_token(args.token_env)
    options = ReleaseOptions(
        base=args.base_model, teacher=args.teacher, license=args.license, repository=args.push, data=not args.no_data
    )
    parts = make_release(FinishedRun(args.run), args.output or args.run / "release", options)
    if args.push is None:
        for folder in parts.values():
            print(folder)
    elif args.dry_run:
        _list(parts)
    else:
        for address in upload(parts, args.push, token, args.private):
            print(address)
    return 0


def _list(parts: Mapping[str, Path]) -> None:
    """Every file that would be uploaded, with its bytes."""
    for folder in parts.values():
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            print(f"{file.stat().st_size:>16,}  {file}")
