"""Grades responses that are in a file already: one JSON line back for each, on standard output.

Rows have `response` and `answer`; for code `tests`, a list of {{"input": stdin, "output": stdout}}. What comes back has `correct`
(true, false, or null where the grader itself has failed), `extracted`, `reason`, and at times `detail`. A response is graded by
what follows its reasoning (`<think>...</think>`); one without reasoning is its own answer.

examples:
  {prog} responses.jsonl --grader math > verdicts.jsonl
  {prog} programs.jsonl --grader code --workers 8

exit codes: 0 done; 1 some could not be graded; 2 a mistake, or no sandbox for code
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dasd_megatron.cli.exit_code import exit_code_of


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="rows, one JSON object a line")
    parser.add_argument(
        "--grader", required=True, metavar="NAME", help="exact, number, math, choice, code, or a plugin's"
    )
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="a module that registers graders"
    )
    parser.add_argument("--workers", type=_count, default=os.cpu_count() or 1, help="processes; default: one a CPU")
    args = parser.parse_args(arguments)
    return exit_code_of(
        lambda: _run(args.file, args.grader, args.plugin, args.workers), "stopped; what is printed is graded"
    )


def _run(path: Path, grader: str, plugins: list[str], workers: int) -> int:
    from dasd_megatron.grading.grade_file import grade_file, row_count
    from dasd_megatron.utils.progress import Progress
    from dasd_megatron.utils.registry import load_plugins

    load_plugins(plugins, "--plugin")
    reasons: Counter[str] = Counter()
    with Progress("grading", row_count(path), "responses") as progress:
        for verdict in grade_file(path, grader, plugins, workers):
            found = asdict(verdict)
            if verdict.detail is None:
                del found["detail"]
            # Half a surrogate pair, which JSON can have and UTF-8 can't, stays the escape that it was.
            print(json.dumps(found, ensure_ascii=False).encode(errors="backslashreplace").decode(), flush=True)
            reasons[verdict.reason] += 1
            progress.update(reasons.total())
    total, failed = reasons.total(), reasons["failed"]
    counted = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
    print(f"{total:,} responses: {counted}; {reasons['right'] / total:.1%} right", file=sys.stderr)
    if failed:
        print(f"error: {failed:,} could not be graded (correct: null); grade again", file=sys.stderr)
    return 1 if failed else 0


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a number, at least 1")
    return int(text)
