"""Answers that are begun for the model: whether it notices a mistake there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from tests.conftest import ROOT, TOY

RECIPE = TOY / "recipe.yaml"
PROBLEMS = 20


def write_problems(path: Path) -> list[dict[str, str]]:
    """Each problem with a wrong first step, and with the right one."""
    rows = []
    for line in (TOY / "validation.jsonl").read_text().splitlines()[:PROBLEMS]:
        problem = json.loads(line)
        first, digits = problem["input"][:3], int(problem["input"][0]) * int(problem["input"][2])
        for result in ((digits + 1) % 10, digits % 10):
            rows.append(
                {"question": problem["input"], "answer": problem["answer"], "start": f"<think>{first}={result}"}
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_the_teacher_notices_a_slip_that_it_is_given(tmp_path: Path) -> None:
    rows = write_problems(tmp_path / "slips.jsonl")
    columns = "columns: {input: question}, answer_start: start"
    benchmark = f"{{name: slips, path: {tmp_path / 'slips.jsonl'}, grader: number, {columns}}}"
    overrides = [
        f"run_dir={tmp_path / 'run'}",
        f"student.model={TOY / 'teacher'}",  # a student that knows slips
        "stages=[]",
        "engine.name=transformers",
        "launch.replicas=1",
        "evaluation.teacher=false",
        "evaluation.temperatures=[0]",
        f"evaluation.benchmarks=[{benchmark}]",
    ]
    command = [sys.executable, "tools/launch.py", str(RECIPE), *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    os.chdir(ROOT)
    steps = build_steps(load_recipe(RECIPE, overrides))
    graded = Artifact(steps["grade_student_slips"].folder).read("answers", ["text", "correct"]).to_pylist()
    assert len(graded) == 2 * PROBLEMS
    for row, answer in zip(rows, graded, strict=True):
        assert answer["text"].startswith(row["start"])
    slips, right = graded[::2], graded[1::2]
    assert sum(answer["text"].split("=")[1][1] == "!" for answer in slips) > 0.9 * PROBLEMS
    assert sum(answer["text"].split("=")[1][1] == ";" for answer in right) > 0.9 * PROBLEMS
    assert sum(answer["correct"] for answer in slips) > 0.9 * PROBLEMS
