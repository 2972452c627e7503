"""`dasd study`: a miniature of two arms and two seeds, killed in the middle, with an arm that fails."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dasd_megatron.artifacts.artifact import is_complete
from tests.conftest import ROOT

STUDY: dict[str, Any] = {
    "name": "mini",
    "recipe": "examples/toy/recipe.yaml",
    "seeds": [1, 2],
    "settings": {
        "engine.name": "transformers",
        "engine.max_batch": 64,
        "launch.replicas": 1,
        "parallel.data": 1,
        "prompts.train.limit": 48,
        "evaluation.benchmarks.0.limit": 40,
        "evaluation.temperatures": [0, 1.0],
        "evaluation.max_tokens": 64,
        "evaluation.samples": 1,
        "sampling.responses_per_prompt": 2,
        "sampling.max_tokens": 64,
        "training.steps": 4,
        "stages": [{"name": "only", "kind": "sampled", "temperature": 1.0}],
    },
    "arms": {"random": {"selection.method": "random"}, "das": {}},
    "comparisons": [
        {"name": "DAS against random", "arm": "das", "against": "random"},
        {"name": "training", "arm": "random", "against": "student"},
    ],
}


def command(file: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "dasd_megatron.cli.main", "study", str(file), *options]


def run(file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(file, *options), cwd=ROOT, capture_output=True, text=True, timeout=800)


def written(folder: Path, **arms: Any) -> Path:
    path = folder / "study.yaml"
    content = {**STUDY, "study_dir": str(folder / "study"), "arms": {**STUDY["arms"], **arms}}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def finished(folder: Path) -> dict[str, int]:
    """Artifacts that are done, and when."""
    done = [path for path in (folder / "study" / "artifacts").glob("*") if is_complete(path)]
    return {path.name: (path / "COMPLETE").stat().st_mtime_ns for path in done}


@pytest.mark.full
def test_killed_in_the_middle_and_with_an_arm_that_fails(tmp_path: Path) -> None:
    file = written(tmp_path, broken={"selection.total": {"physics": 5}})
    with subprocess.Popen(command(file), cwd=ROOT, stdout=subprocess.DEVNULL) as killed:
        while killed.poll() is None and len(finished(tmp_path)) < 15:
            time.sleep(0.1)
        assert killed.poll() is None
        killed.kill()
    before = finished(tmp_path)
    time.sleep(1)
    assert finished(tmp_path) == before, "a step outlived the study"

    failed = run(file)
    assert failed.returncode == 2
    assert f", {len(before)} of them done before" in failed.stdout
    for seed in (1, 2):
        (message,) = (
            line for line in failed.stderr.splitlines() if f"select_only (broken, seed {seed}) failed" in line
        )
        assert "no response is chosen; there are, by domain: m" in message
        log = Path(message.rpartition("(")[2].rstrip(")"))
        assert "no response is chosen" in log.read_text()
    assert "steps need what failed" in failed.stderr
    assert "not every arm is done with seeds 1, 2: left out" in failed.stdout
    assert (tmp_path / "study" / "das" / "seed-2" / "report.html").is_file()
    assert "Traceback" not in failed.stderr
    assert all(finished(tmp_path)[name] == when for name, when in before.items())

    done = run(written(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "42 steps, 42 of them done before" in done.stdout
    folder = tmp_path / "study"
    check_numbers(folder)
    for name in (
        "study.html",
        "study.md",
        "random/seed-1/report.html",
        "das/seed-2/final/model.safetensors",
        "das/seed-1/recipe.yaml",
    ):
        assert (folder / name).is_file(), name
    assert len(list((folder / "figures").glob("*.svg"))) == 7
    assert "DAS against random" in done.stdout
    counted = run(file.with_name("study.yaml"), "--dry-run")
    assert "2 arms with 2 seeds: 42 different steps, 42 of them done" in counted.stdout


def check_numbers(folder: Path) -> None:
    """Means and differences, from the runs' own files."""
    found = json.loads((folder / "study.json").read_text())

    def scores(arm: str, seed: int, model: str) -> dict[str, float]:
        text = (folder / arm / f"seed-{seed}" / "scores.json").read_text()
        return json.loads(text)["arithmetic"]["models"][model]["1"]

    das, random, student = (
        np.array([list(dict(sorted(scores(arm, seed, model).items())).values()) for seed in (1, 2)])
        for arm, model in (("das", "only"), ("random", "only"), ("random", "student"))
    )
    estimates = {arm: of_arm["arithmetic"]["1"] for arm, of_arm in found["estimates"].items()}
    assert list(estimates) == ["student", "random", "das", "teacher"]
    for arm, expected in (("das", das), ("random", random), ("student", student)):
        assert estimates[arm]["mean"] == pytest.approx(expected.mean())
        assert estimates[arm]["seed_error"] == pytest.approx(expected.mean(axis=1).std(ddof=1) / 2**0.5)
    first, second = (comparison["effects"]["arithmetic"]["1"]["difference"] for comparison in found["comparisons"])
    assert first["mean"] == pytest.approx((das - random).mean())
    assert second["mean"] == pytest.approx((random - student).mean())
    assert second["problem_error"] == pytest.approx((random - student).mean(axis=0).std(ddof=1) / 40**0.5)
    assert set(found["estimates"]["das"]["arithmetic"]) == {"greedy", "1", "KL"}
