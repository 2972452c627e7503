"""Steps that sample: what a kill costs, what they show, and what they make of engines that end in any order."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from tests.conftest import ROOT, TOY
from tests.helpers.recorded_engine import RECORD
from tests.helpers.small_run import assert_same_rows

KILLS = 5
BATCH = 8
PROMPTS, RESPONSES = 40, 4
STEP = "sample_low_temperature"
OVERRIDES = [
    "plugins=[tests.helpers.recorded_engine]",
    "engine.name=recorded",
    f"engine.max_batch={BATCH}",
    f"prompts.train.limit={PROMPTS}",
    f"sampling.responses_per_prompt={RESPONSES}",
    "sampling.prompts_per_shard=10",
    "sampling.max_tokens=96",
]


def start(folder: Path, step: str = STEP, *overrides: str) -> subprocess.Popen[str]:
    arguments = [str(TOY / "recipe.yaml"), *OVERRIDES, f"run_dir={folder}", "launch.replicas=1", *overrides]
    environment = {**os.environ, RECORD: str(folder.with_suffix(".record")), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "tools/launch.py", *arguments, "--only", step]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def run(folder: Path, step: str = STEP, *overrides: str) -> str:
    process = start(folder, step, *overrides)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 0, errors[-3000:]
    return errors


def artifact_of(folder: Path, step: str = STEP) -> Path:
    os.chdir(ROOT)
    return build_steps(load_recipe(TOY / "recipe.yaml", [*OVERRIDES, f"run_dir={folder}"]))[step].folder


def record_of(folder: Path) -> list[str]:
    return folder.with_suffix(".record").read_text().splitlines()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    for step in ("benchmark_arithmetic", "prompts_train", STEP):
        run(folder, step)
    return folder


def test_each_response_is_asked_for_once(undisturbed: Path) -> None:
    lines = Counter(line.split()[0] for line in record_of(undisturbed))
    assert lines == {"asked": PROMPTS * RESPONSES, "gave": PROMPTS * RESPONSES}
    rows = list(Artifact(artifact_of(undisturbed)).rows("responses", ["uuid", "sample_index"]))
    assert len({(row["uuid"], row["sample_index"]) for row in rows}) == len(rows) == PROMPTS * RESPONSES
    assert not list(artifact_of(undisturbed).glob(".*"))


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """A run whose prompts are read."""
    shutil.copytree(
        undisturbed, tmp_path / "run", ignore=lambda _, names: [name for name in names if name.startswith(STEP)]
    )
    return tmp_path / "run"


def test_killed_at_random_moments_only_what_was_in_flight_is_sampled_again(undisturbed: Path, folder: Path) -> None:
    chance, killed = random.Random(0), 0
    for given in sorted(chance.sample(range(1, PROMPTS * RESPONSES - BATCH), KILLS)):
        process = start(folder)
        while process.poll() is None and (
            not folder.with_suffix(".record").exists()
            or sum(line.startswith("gave") for line in record_of(folder)) < given
        ):
            time.sleep(0.002)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        time.sleep(0.2)  # the step's process ends with it
    run(folder)
    assert killed == KILLS
    asked, gave = Counter[str](), Counter[str]()
    for line in record_of(folder):
        what, seed = line.split()
        (asked if what == "asked" else gave)[seed] += 1
    assert len(asked) == PROMPTS * RESPONSES
    assert 0 < asked.total() - len(asked) <= killed * BATCH
    assert gave.total() == len(gave)  # what was kept once is never asked for again
    assert len(gave) >= PROMPTS * RESPONSES - killed * BATCH  # killed before it was noted
    shards = sorted(artifact_of(folder).glob("*.parquet"))
    assert len(shards) == 4
    for path in shards:
        assert_same_rows(path, artifact_of(undisturbed) / path.name)
    assert not list(artifact_of(folder).glob(".*"))


def test_progress_is_in_tokens_and_says_what_would_pass(undisturbed: Path, folder: Path) -> None:
    errors = run(folder, STEP, "engine.max_batch=1", "sampling.prompts_per_shard=40")
    tokens = Artifact(artifact_of(undisturbed)).manifest["counts"]["tokens"]
    line = errors.splitlines()[-1]
    assert re.search(rf"{STEP}: {tokens}/{tokens} tokens, [\d.]+ tokens/s", line), errors
    assert f"({PROMPTS * RESPONSES} of {PROMPTS * RESPONSES} responses)" in line
    assert re.search(r"\d+% would pass the filters", line)
    assert "warning" not in errors


def test_responses_that_no_filter_would_pass_are_warned_of(folder: Path) -> None:
    errors = run(
        folder,
        STEP,
        "engine.max_batch=1",
        "sampling.max_tokens=6",
        "sampling.prompts_per_shard=40",
        "sampling.responses_per_prompt=8",
    )
    assert re.search(
        rf"warning: {STEP}: of the first \d+ responses 0 would pass the filters; \d+ would be dropped as truncated\. "
        r"It goes on; to change that, stop it and raise sampling\.max_tokens",
        errors,
    ), errors
    assert errors.count("warning:") == 1
