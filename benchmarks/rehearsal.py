"""How well a rehearsal's corrected plan agrees with the run: both of the toy recipe, on this machine, one after the other.

python -m benchmarks.rehearsal [--folder FOLDER] [key=value ...]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = "examples/toy/recipe.yaml"


def main() -> int:
    """Rehearses, runs, and prints both times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the recipe's")
    parser.add_argument("--folder", type=Path, help="where the run folders go; a temporary one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        command = [sys.executable, "tools/launch.py", RECIPE, f"run_dir={folder / 'run'}", *args.overrides]
        start = time.monotonic()
        out = _printed([*command, "--rehearse"], folder / "rehearsal.log")
        rehearsed = time.monotonic() - start
        planned, by_step = _plan(out)
        start = time.monotonic()
        run = _printed(command, folder / "run.log")
        took = (time.monotonic() - start) / 3600
        real = {name: float(seconds) for name, seconds in re.findall(r"^\[\d+/\d+\] (\w+): ([\d.]+) s$", run, re.M)}
    print(f"{'step':40} {'planned':>9} {'run':>9}  seconds")
    for name, seconds in real.items():
        print(f"{name:40} {by_step[name]:9} {seconds:9.1f}")
    result = {
        "rehearsal_minutes": round(rehearsed / 60, 2),
        "planned_hours": round(planned, 4),
        "run_hours": round(took, 4),
        "ratio": round(planned / took, 3),
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(result))
    return 0


def _printed(command: list[str], log: Path) -> str:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed; see {log}")
    log.with_suffix(".out").write_text(done.stdout)
    return done.stdout


def _plan(out: str) -> tuple[float, dict[str, int]]:
    """Hours in all, and seconds of each step."""
    total = re.search(r"^hours: ([\d.]+)", out, re.MULTILINE)
    assert total is not None
    table = out.partition("the run by these measurements")[2].partition("hours:")[0]
    found = re.findall(r"^(\w+) +(\d+):(\d\d):(\d\d) ", table, re.MULTILINE)
    steps = {name: 3600 * int(hours) + 60 * int(minutes) + int(rest) for name, hours, minutes, rest in found}
    return float(total[1]), steps


if __name__ == "__main__":
    sys.exit(main())
