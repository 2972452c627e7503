"""The toy recipe, small enough for a minute, as a user runs it; and what of a run must not depend on how it was run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.steps.step import Step
from tests.conftest import ROOT, TOY
from tests.helpers.training_runs import RESULTS

RECIPE = TOY / "recipe.yaml"
TOLERANCE = 1e-4
# Small enough for minutes; the reference engine starts faster than vLLM (whose turn is in test_images and tests/slurm).
SMALL = [
    "engine.name=transformers",
    "prompts.train.limit=48",
    "evaluation.benchmarks.0.limit=40",
    "sampling.responses_per_prompt=2",
    "sampling.prompts_per_shard=12",
    "sampling.max_tokens=64",
    "evaluation.max_tokens=64",
    "evaluation.answers_per_shard=60",
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


def assert_same_run(one: Path, other: Path, loss_tolerance: float = 0.0) -> None:
    """Everything in two runs that must not depend on when they were interrupted is the same.

    Numbers that an engine computes are equal to TOLERANCE: the reference engine sums in another order in a batch of other size.
    With a `loss_tolerance` the losses alone are compared of training steps.
    """
    steps = artifacts(one), artifacts(other)
    assert list(steps[0]) == list(steps[1])
    for name in steps[0]:
        first, second = steps[0][name].folder, steps[1][name].folder
        assert _facts(first) == _facts(second), name
        for path in first.glob("*.parquet"):
            assert_same_rows(path, second / path.name)
        if steps[0][name].kind.name == "train":
            assert_same_training(first, second, loss_tolerance)
        if steps[0][name].kind.name == "export":
            assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def assert_same_rows(one: Path, other: Path) -> None:
    """Two shards are the same; floating-point numbers to TOLERANCE."""
    tables = [pq.read_table(path) for path in (one, other)]
    for field in tables[0].schema:
        columns = [table[field.name].combine_chunks() for table in tables]
        values = [column.flatten() if pa.types.is_list(field.type) else column for column in columns]
        if pa.types.is_floating(values[0].type):
            numbers = [column.fill_null(0).to_numpy() for column in values]
            np.testing.assert_allclose(
                numbers[0], numbers[1], atol=TOLERANCE, rtol=0, err_msg=f"{one.name}: {field.name}"
            )
        else:
            assert columns[0].equals(columns[1]), f"{one}: {field.name}"


def _facts(folder: Path) -> dict[str, Any]:
    manifest = Artifact(folder).manifest
    facts = {key: manifest.get(key) for key in ("key", "counts", "dropped", "accuracy")}
    return {**facts, "files": [shard["name"] for shard in manifest["shards"]]}


def assert_same_training(one: Path, other: Path, loss_tolerance: float) -> None:
    """Of two training steps, every optimizer step is the same."""
    first, second = (
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, other)
    )
    if loss_tolerance:
        losses = [[line["loss"] for line in lines] for lines in (first, second)]
        np.testing.assert_allclose(losses[0], losses[1], atol=loss_tolerance, rtol=0)
    else:
        results = [[{key: line[key] for key in RESULTS} for line in lines] for lines in (first, second)]
        assert results[0] == results[1]
