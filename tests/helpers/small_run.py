"""The toy recipe, small enough for a minute, as a user runs it; and what of a run must not depend on how it was run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.steps.step import Step
from tests.conftest import ROOT, TOY
from tests.helpers.training_runs import RESULTS

RECIPE = TOY / "recipe.yaml"
# Small enough for minutes; the reference engine starts faster than vLLM (whose turn is in test_images and tests/slurm).
SMALL = [
    "engine.name=transformers",
    "prompts.train.limit=48",
    "prompts.test.limit=40",
    "sampling.responses_per_prompt=2",
    "sampling.prompts_per_shard=12",
    "sampling.max_tokens=64",
    "evaluation.max_tokens=64",
    "evaluation.problems_per_shard=20",
    "evaluation.samples=1",
    "training.steps=8",
    "stages.2.training.steps=4",
    "training.save_every=2",
]


def launch(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "tools/launch.py", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*arguments: str) -> tuple[int, str, str]:
    process = launch(*arguments)
    out, errors = process.communicate(timeout=900)
    return process.returncode, out, errors


def small_run(folder: Path) -> list[str]:
    return [str(RECIPE), *SMALL, f"run_dir={folder}"]


def artifacts(folder: Path) -> dict[str, Step]:
    os.chdir(ROOT)
    return build_steps(load_recipe(RECIPE, [*SMALL, f"run_dir={folder}"]))


def content_of(folder: Path) -> dict[str, Any]:
    """Everything in a run that must not depend on when it was interrupted."""
    content: dict[str, Any] = {}
    for name, step in artifacts(folder).items():
        manifest = Artifact(step.folder).manifest
        content[name] = {
            key: manifest.get(key) for key in ("key", "counts", "dropped", "shards", "accuracy", "alignment")
        }
        if step.kind.name == "train":
            lines = [json.loads(line) for line in (step.folder / "metrics.jsonl").read_text().splitlines()]
            content[name]["steps"] = [{key: line[key] for key in RESULTS} for line in lines]
        if step.kind.name == "export":
            content[name]["weights"] = (step.folder / "model.safetensors").read_bytes()
    return content
