#!/usr/bin/env python
"""Accepts a machine with GPUs: tests and benchmarks that need one, in about 20 minutes, as one page (Markdown and JSON).

Each check is a process of its own with a time limit. What it found is kept: the same command goes on after a kill, and runs again
what failed. --stand-in runs all of it without a GPU, at tiny sizes, with Transformer Engine's kernels emulated, and so finds what
would fail for other reasons than a GPU's.

examples:
  python -m benchmarks.gpu_check --output gpu-check
  python -m benchmarks.gpu_check --output gpu-check --only attention train_step
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu_checks import CHECKS, Check
from benchmarks.gpu_page import page, summary_of
from dasd_megatron.utils.files import write_json

RUN, STAND_IN = [sys.executable, "-m"], "tests.helpers.te_on_cpu.run"
# What a check that doesn't end counts as, as with timeout(1).
TOO_LONG = 124


def run(check: Check, output: Path, gpus: int, stand_in: bool) -> dict[str, Any]:
    """Runs it, with all that it prints in `output`; what came out."""
    arguments = [*check.arguments, *(check.tiny or [] if stand_in else check.ranks(gpus))]
    report, log = output / f"{check.name}.xml", output / f"{check.name}.log"
    if check.is_test:
        arguments.append(f"--junitxml={report.resolve()}")
    command = [*RUN, *([STAND_IN] if stand_in and check.emulated else []), *arguments]
    start, code = time.monotonic(), 0
    with (
        log.open("w") as file,
        # In a session of its own: what it started is ended with it, and doesn't hold the GPUs.
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, text=True, env=dict(os.environ), start_new_session=True
        ) as process,
    ):
        try:
            printed, code = process.communicate(timeout=60 * check.minutes)[0], process.returncode
        except subprocess.TimeoutExpired:
            code = TOO_LONG
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        if code == TOO_LONG:
            printed = process.communicate()[0]
        file.write(printed)
    found: dict[str, Any] = {
        "seconds": round(time.monotonic() - start, 1),
        "code": code,
        "command": " ".join(command[1:]),
    }
    if code == TOO_LONG:
        found["problem"] = f"no end within {check.minutes:g} minutes"
    elif check.is_test and report.is_file():
        found["tests"] = tests_of(report)
    elif code == 0:
        found["result"] = json.loads(printed.splitlines()[-1])
    if code and "problem" not in found:
        found["problem"] = next((line for line in reversed(log.read_text().splitlines()) if line.strip()), "no message")
    if not code and check.is_test and not found["tests"]["passed"]:
        found["problem"] = "every test was skipped"
    return found


def tests_of(report: Path) -> dict[str, Any]:
    """Of a JUnit report: how many passed, which failed, and why others were skipped."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [found.get("message") for case in cases if (found := case.find("skipped")) is not None]
    return {"passed": len(cases) - len(failed) - len(skipped), "failed": failed, "skipped": skipped}


def machine(stand_in: bool) -> dict[str, Any]:
    """What the page says of hardware and software. In a process of its own: this one stays without CUDA."""
    code = (
        "import json, torch, importlib.metadata as m\n"
        "def version(n):\n"
        "    try: return m.version(n)\n"
        "    except m.PackageNotFoundError: return None\n"
        "gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]\n"
        "names = ['torch', 'megatron-core', 'transformer-engine', 'vllm', 'flash-attn', 'liger-kernel', 'transformers']\n"
        "print(json.dumps({'gpus': gpus, 'cuda': torch.version.cuda, 'cudnn': torch.backends.cudnn.version(),\n"
        "                  'versions': {n: version(n) for n in names}}))"
    )
    found: dict[str, Any] = json.loads(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {**found, "commit": commit or "unknown", "stand_in": stand_in, "date": time.strftime("%Y-%m-%d")}


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [check.name for check in CHECKS]
    parser.add_argument(
        "--output", type=Path, default=Path("gpu-check"), help="folder of the page, of results and of logs"
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="CHECK", help=f"of {', '.join(names)}"
    )
    parser.add_argument("--stand-in", action="store_true", help="without a GPU, at tiny sizes")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    facts, path = machine(args.stand_in), args.output / "results.json"
    if not facts["gpus"] and not args.stand_in:
        print(
            "error: this machine has no GPU that torch can use; --stand-in tries the checks without one",
            file=sys.stderr,
        )
        return 2
    kept = json.loads(path.read_text()) if path.is_file() else {}
    same = {**kept.get("machine", {}), "date": facts["date"]} == facts
    checks = kept["checks"] if same else {}
    for check in CHECKS:
        done = check.name in checks and "problem" not in checks[check.name]
        if check.name not in args.only or done or (args.stand_in and check.tiny is None):
            continue
        print(f"{check.name} ...", end=" ", flush=True)
        checks[check.name] = run(check, args.output, len(facts["gpus"]), args.stand_in)
        write_json(path, {"machine": facts, "checks": checks})
        print(summary_of(checks[check.name]), flush=True)
    text = page(facts, {check.name: (check.question, checks[check.name]) for check in CHECKS if check.name in checks})
    (args.output / "page.md").write_text(text)
    failed = [name for name, found in checks.items() if "problem" in found]
    print(f"{args.output / 'page.md'}: {len(checks) - len(failed)} of {len(checks)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
