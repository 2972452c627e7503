"""What a check of GPUs found, as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu_suspicions import suspicion_lines

# Columns of results whose names say enough, in their order; others are left to the JSON file.
SHORT = 4


def page(machine: Mapping[str, Any], checks: Mapping[str, tuple[str, Mapping[str, Any]]]) -> str:
    """The whole page: hardware and software, a table of verdicts, what was suspected, and each check's numbers."""
    lines = ["# GPU check", ""]
    if machine["stand_in"]:
        lines += [
            "**Not run on a GPU**: kernels were emulated on a CPU, at tiny sizes; no time here means anything.",
            "",
        ]
    gpus = machine["gpus"]
    lines += [
        f"- GPUs: {len(gpus)} x {gpus[0]}" if gpus else "- GPUs: none",
        f"- CUDA {machine['cuda']}, cuDNN {machine['cudnn']}",
        "- " + ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version),
        f"- commit {machine['commit']}, {machine['date']}",
        "",
        "| check | question | result | seconds |",
        "| --- | --- | --- | --- |",
    ]
    for name, (question, found) in checks.items():
        lines.append(f"| {name} | {question} | {summary_of(found)} | {found['seconds']} |")
    results = {name: found for name, (_, found) in checks.items()}
    lines += ["", "## What was suspected", "", *suspicion_lines(results)]
    for name, (_, found) in checks.items():
        lines += ["", f"## {name}", "", f"`python {found['command']}`", "", *_details(found)]
    return "\n".join(lines) + "\n"


def summary_of(found: Mapping[str, Any]) -> str:
    """One line."""
    if "tests" in found:
        tests = found["tests"]
        counts = [f"{tests['passed']} passed"]
        counts += [f"**{len(tests['failed'])} failed**"] if tests["failed"] else []
        counts += [f"{len(tests['skipped'])} skipped"] if tests["skipped"] else []
        counts += [] if tests["passed"] or tests["failed"] else ["**nothing was checked**"]
        return ", ".join(counts)
    return f"**failed**: {found['problem']}" if "problem" in found else "measured"


def _details(found: Mapping[str, Any]) -> list[str]:
    if "tests" in found:
        reasons = sorted(set(found["tests"]["skipped"]))
        return [f"- failed: {name}" for name in found["tests"]["failed"]] + [
            f"- skipped: {reason}" for reason in reasons
        ]
    result = found.get("result")
    if isinstance(result, list) and result:
        columns = list(dict.fromkeys(key for row in result for key in row))
        table = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
        return table + [f"| {' | '.join(_shown(row.get(key, '')) for key in columns)} |" for row in result]
    if isinstance(result, dict):
        return [f"- {key}: {_shown(value)}" for key, value in result.items()]
    return []


def _shown(value: Any) -> str:
    return f"{value:.{SHORT}g}" if isinstance(value, float) else str(value)
