"""`dasd evaluate` on a real model and a real benchmark: SmolLM2-135M-Instruct and HumanEval, to the page that one reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import bootstrap, sem

from tests.conftest import ROOT
from tests.helpers.browser import browser
from tests.helpers.human_eval import human_eval_problems
from tests.helpers.smollm2 import smollm2_folder

PROBLEMS = 40

pytestmark = [pytest.mark.network, pytest.mark.full]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    problems = folder / "HumanEval.jsonl"
    problems.write_text("".join(json.dumps(problem) + "\n" for problem in human_eval_problems()))
    command = [sys.executable, "-m", "dasd_megatron.cli.main", "evaluate", str(smollm2_folder())]
    command += ["--benchmark", f"humaneval={problems}", "--limit", str(PROBLEMS), "--output", str(folder / "run")]
    command += ["--temperature", "0", "--temperature", "1", "--samples", "2", "--max-tokens", "192"]
    settings = ["engine.dtype=bfloat16", "engine.max_length=1024", "student.response_format=think", "launch.replicas=1"]
    done = subprocess.run(
        [*command, *settings], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout, done.stderr)
    return folder / "run"


def test_numbers(evaluated: Path) -> None:
    """Some problems are solved, and not all: neither the grader nor the model does nothing."""
    scores = json.loads((evaluated / "scores.json").read_text())["humaneval"]["models"]["student"]
    measures = json.loads((evaluated / "summary.json").read_text())["benchmarks"]["humaneval"]["measures"]["student"]
    assert list(scores) == list(measures) == ["greedy", "1"]
    for temperature, found in measures.items():
        values = np.array(list(scores[temperature].values()))
        assert len(values) == PROBLEMS
        assert found["accuracy"]["mean"] == pytest.approx(values.mean())
        assert found["accuracy"]["standard_error"] == pytest.approx(sem(values))
    assert 0 < measures["greedy"]["accuracy"]["mean"] < 0.8
    interval = bootstrap((np.array(list(scores["greedy"].values())),), np.mean, rng=0).confidence_interval
    low, high = (measures["greedy"]["accuracy"][name] for name in ("low", "high"))
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.06)


def test_the_page(evaluated: Path) -> None:
    """Programs that passed and that failed are there to read, with the programs that were run."""
    with browser() as page:
        page.open(evaluated / "report.html")
        assert page.errors == []
        assert page.texts("figcaption")[0] == "Accuracy by stage"
        page.choose(".reader .marks", "right")
        assert page.one(".reader .found").text.endswith(f"of {PROBLEMS} prompts")
        assert "Complete the following Python function." in page.one(".reader .prompt").text
        assert all("right" in title for title in page.texts(".reader .card h3"))
        assert "def " in page.texts(".reader .card .text")[0]
        page.choose(".reader .marks", "wrong")
        assert page.all(".reader .card")
        page.search("has_close_elements")
        assert len(page.all(".reader .items li")) == 1
