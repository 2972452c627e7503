"""Answers and verdicts as steps: what a kill costs, and that grading again asks no engine."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from tests.conftest import ROOT, TOY
from tests.helpers.recorded_engine import RECORD
from tests.helpers.small_run import assert_same_rows

pytestmark = pytest.mark.full
KILLS, BATCH = 5, 256
PROBLEMS, SAMPLES = 60, 64
ANSWERS = PROBLEMS * SAMPLES
BENCHMARK, ANSWER, GRADE = "benchmark_arithmetic", "answer_student_arithmetic", "grade_student_arithmetic"
OVERRIDES = [
    "plugins=[tests.helpers.recorded_engine]",
    "engine.name=recorded",
    f"engine.max_batch={BATCH}",
    f"evaluation.benchmarks.0.limit={PROBLEMS}",
    "evaluation.temperatures=[1.0]",
    f"evaluation.samples={SAMPLES}",
    "evaluation.answers_per_shard=100",
    "evaluation.max_tokens=48",
    "evaluation.teacher=false",
    "launch.replicas=1",
]


def start(folder: Path, step: str, *overrides: str) -> subprocess.Popen[str]:
    arguments = [str(TOY / "recipe.yaml"), *OVERRIDES, f"run_dir={folder}", *overrides, "--only", step]
    environment = {**os.environ, RECORD: str(folder.with_suffix(".record")), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tools/launch.py", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def run(folder: Path, step: str, *overrides: str) -> str:
    process = start(folder, step, *overrides)
    errors = process.communicate(timeout=800)[1]
    assert process.returncode == 0, errors[-3000:]
    return errors


def artifact_of(folder: Path, step: str, *overrides: str) -> Artifact:
    os.chdir(ROOT)
    recipe = load_recipe(TOY / "recipe.yaml", [*OVERRIDES, f"run_dir={folder}", *overrides])
    return Artifact(build_steps(recipe)[step].folder)


def record_of(folder: Path) -> list[str]:
    path = folder.with_suffix(".record")
    return path.read_text().splitlines() if path.exists() else []


def verdicts_of(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    columns = ["uuid", "sample_index", "correct", "extracted", "reason"]
    return list(artifact_of(folder, GRADE, *overrides).rows("answers", columns))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    for step in (BENCHMARK, ANSWER, GRADE):
        run(folder, step)
    return folder


def test_killed_at_random_moments(undisturbed: Path, tmp_path: Path) -> None:
    folder, killed = tmp_path / "run", 0
    run(folder, BENCHMARK)
    for given in sorted(random.Random(0).sample(range(1, ANSWERS - BATCH), KILLS)):
        process = start(folder, ANSWER)
        while process.poll() is None and sum(line.startswith("gave") for line in record_of(folder)) < given:
            time.sleep(0.02)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.2)  # the step's process ends with it
    run(folder, ANSWER)
    run(folder, GRADE)
    assert killed == KILLS
    asked = Counter(line.split()[1] for line in record_of(folder) if line.startswith("asked"))
    assert len(asked) == ANSWERS
    assert asked.total() - len(asked) <= killed * BATCH
    ours, others = artifact_of(folder, ANSWER), artifact_of(undisturbed, ANSWER)
    for shard in others.shards("answers"):
        assert_same_rows(ours.path / shard["name"], others.path / shard["name"])
    assert verdicts_of(folder) == verdicts_of(undisturbed)
    assert artifact_of(folder, GRADE).manifest["measures"] == artifact_of(undisturbed, GRADE).manifest["measures"]


def test_an_answer_is_what_it_is_whatever_the_shards(undisturbed: Path, tmp_path: Path) -> None:
    other = ["evaluation.answers_per_shard=7", "evaluation.benchmarks.0.limit=3"]
    for step in (BENCHMARK, ANSWER):
        run(tmp_path / "run", step, *other)
    columns = ["uuid", "sample_index", "text"]
    found = list(artifact_of(tmp_path / "run", ANSWER, *other).rows("answers", columns))
    assert found == list(artifact_of(undisturbed, ANSWER).rows("answers", columns))[: 3 * SAMPLES]


def test_grading_again_asks_no_engine(undisturbed: Path) -> None:
    before, first = record_of(undisturbed), verdicts_of(undisturbed)
    path = artifact_of(undisturbed, GRADE).path
    for file in path.iterdir():
        file.unlink()
    run(undisturbed, GRADE)
    assert verdicts_of(undisturbed) == first
    grader = "evaluation.benchmarks.0.grader=math"
    run(undisturbed, GRADE, grader)
    again = verdicts_of(undisturbed, grader)
    assert [verdict["correct"] for verdict in again] == [verdict["correct"] for verdict in first]
    assert artifact_of(undisturbed, ANSWER, grader).path == artifact_of(undisturbed, ANSWER).path
    assert record_of(undisturbed) == before
