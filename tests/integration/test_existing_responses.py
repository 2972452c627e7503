"""A stage whose responses exist already, in the schema of the paper's authors, without a teacher."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from tests.conftest import ROOT, TOY
from tests.helpers.small_run import RECIPE, SMALL, TOLERANCE, artifacts, finish

ONE_STAGE = "stages=[{name: low_temperature, kind: sampled, temperature: 0.6}]"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def sampled(calm: Path) -> list[dict[str, Any]]:
    """What the pipeline has sampled for the first stage."""
    rows: list[dict[str, Any]] = (
        Artifact(artifacts(calm)["sample_low_temperature"].folder).read("responses").to_pylist()
    )
    return rows


@pytest.fixture
def tokenizer_only(tmp_path: Path) -> Path:
    """The teacher's folder without its weights."""
    folder = tmp_path / "teacher"
    shutil.copytree(TOY / "teacher", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def released(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """In the schema of the paper's authors: text, and log-probabilities in another order."""
    texts, logprobs = [], []
    for row in rows:
        uuid = f"{row['uuid']}-{row['sample_index']}"
        text = row["text"].removesuffix("<|return|>")
        texts.append({"uuid": uuid, "input": row["input"], "output": text, "domain": row["domain"], "meta": "{}"})
        logprobs.append({"sample_uuid": uuid, "token_ids": row["token_ids"], "logprobs": row["logprobs"]})
    return texts, logprobs[::-1]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def stage(path: Path, logprobs: Path | None = None, **more: Any) -> str:
    responses: dict[str, Any] = {"path": str(path), **more}
    if logprobs is not None:
        responses["logprobs"] = {"path": str(logprobs)}
    return "stages=" + json.dumps(
        [{"name": "low_temperature", "kind": "sampled", "temperature": 0.6, "responses": responses}]
    )


def choices(folder: Path, overrides: list[str]) -> tuple[list[tuple[str, str]], list[tuple[float, ...]]]:
    """What `select` has chosen, and every candidate's scores, in a form that doesn't depend on uuids."""
    os.chdir(ROOT)
    steps = build_steps(load_recipe(RECIPE, [*SMALL, f"run_dir={folder}", *overrides]))
    artifact = Artifact(steps["select_low_temperature"].folder)
    chosen = [(row["input"], row["text"]) for row in artifact.rows("responses", ["input", "text"])]
    scores = ["text_hash", "share_above", "mean_difference", "mean_log_ratio"]
    candidates = [tuple(row[name] for name in scores) for row in artifact.rows("candidates", scores)]
    return sorted(chosen), sorted(candidates)


def run(folder: Path, *overrides: str) -> tuple[int, str]:
    code, out, errors = finish(str(RECIPE), *SMALL, f"run_dir={folder}", "launch.replicas=1", *overrides)
    return code, out + errors


def test_a_release_is_learned_from_without_a_teacher(
    calm: Path, sampled: list[dict[str, Any]], tokenizer_only: Path, tmp_path: Path
) -> None:
    texts, logprobs = released(sampled)
    files = write(tmp_path / "stage1.jsonl", texts), write(tmp_path / "logprobs.parquet", logprobs)
    overrides = [stage(*files), f"teacher.model={tokenizer_only}", "evaluation.teacher=false"]
    code, out = run(tmp_path / "run", *overrides)
    assert code == 0, out[-3000:]
    (chosen, scores), (expected, expected_scores) = choices(tmp_path / "run", overrides), choices(calm, [])
    assert chosen == expected
    np.testing.assert_allclose(scores, expected_scores, rtol=0, atol=TOLERANCE)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    facts = summary["benchmarks"]["arithmetic"]
    assert list(facts["measures"]) == ["student", "low_temperature"]
    assert facts["alignment"] == {}
    assert "KL" not in out
    assert "alignment" not in (tmp_path / "run" / "report.html").read_text().lower()


def test_a_teacher_that_runs_needs_its_weights(tokenizer_only: Path, tmp_path: Path) -> None:
    code, out = run(tmp_path / "run", f"teacher.model={tokenizer_only}", ONE_STAGE)
    assert code == 2
    assert "no safetensors in it, and the teacher is run by stages.0, evaluation.teacher=true; get its weights" in out
