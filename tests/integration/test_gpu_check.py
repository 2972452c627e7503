"""The acceptance of GPUs, without one: what it runs, what it keeps, and what it says of failures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from markdown import markdown

from benchmarks.gpu_check import run
from benchmarks.gpu_checks import CHECKS, Check
from benchmarks.gpu_page import page, summary_of
from tests.conftest import ROOT
from tests.helpers.browser import browser


def gpu_check(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200)


@pytest.mark.full
def test_with_emulated_kernels(tmp_path: Path) -> None:
    """Benchmarks at tiny sizes, on the GPU's branch; what was found is kept."""
    first = gpu_check("--stand-in", "--output", tmp_path, "--only", "attention", "fused_loss")
    assert first.returncode == 0, first.stdout + first.stderr
    second = gpu_check("--stand-in", "--output", tmp_path)
    assert second.returncode == 0, second.stdout + second.stderr
    found = json.loads((tmp_path / "results.json").read_text())["checks"]
    assert set(found) == {check.name for check in CHECKS if check.tiny is not None}
    assert list(found)[:2] == ["attention", "fused_loss"]
    assert "attention ..." not in second.stdout
    assert [row["backend"] for row in found["attention"]["result"]] == ["cudnn", "cudnn"]
    assert found["fused_loss"]["result"]["times_ideal"] > 0
    assert [row["what"] for row in found["train_step"]["result"]] == [
        "transformers",
        "Megatron bf16",
        "Megatron tensorwise",
    ]
    assert found["checkpoints"]["result"]["ranks"] == 2
    assert {row["layout"] for row in found["layouts"]["result"]} == {
        *("context=1 p2p", "context=2 p2p", "context=2 a2a"),
        *(f"experts, recompute={how}" for how in ("none", "selective", "full")),
    }
    assert {"megatron", "vllm"} < found["scoring"]["result"]["compared"].keys()
    assert [row["engine"] for row in found["engine_speed"]["result"]] == ["one process", "scheduler in its own"]
    check_page(tmp_path / "page.md")


def check_page(path: Path) -> None:
    """As a browser shows it: every check in the first table, every suspicion in the second."""
    text = path.read_text()
    assert "**Not run on a GPU**" in text
    html = path.with_suffix(".html")
    html.write_text(f"<!doctype html><meta charset=utf-8><main>{markdown(text, extensions=['tables'])}</main>")
    with browser() as shown:
        shown.driver.get(html.as_uri())
        assert shown.texts("h1") == ["GPU check"]
        assert shown.texts("h2") == ["What was suspected", *(check.name for check in CHECKS if check.tiny is not None)]
        tables = shown.all("table")
        names = [cell.text for cell in tables[0].find_elements("css selector", "td:first-child")]
        assert names == [check.name for check in CHECKS if check.tiny is not None]
        suspicions = [row.text for row in tables[1].find_elements("css selector", "tbody tr")]
        assert [row[0] for row in suspicions] == ["A", "B", "C", "D", "E", "F"]
        assert "context=2" in suspicions[1]
        assert "not known: needs two GPUs" in suspicions[4]
        assert "|" not in shown.one("main").text  # no table that was left as text


def test_a_machine_without_a_gpu(tmp_path: Path) -> None:
    done = gpu_check("--output", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr == "error: this machine has no GPU that torch can use; --stand-in tries the checks without one\n"


def test_what_a_check_finds(tmp_path: Path) -> None:
    (tmp_path / "test_odd.py").write_text(
        "import pytest\ndef test_right(): pass\ndef test_wrong(): assert 1 == 2\ndef test_left(): pytest.skip('one GPU')\n"
    )
    (tmp_path / "test_absent.py").write_text("import pytest\ndef test_left(): pytest.skip('no vLLM')\n")
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts="]
    left = tmp_path / "left"
    starts_another = "; ".join(
        (
            "import subprocess, time",
            f"subprocess.Popen(['sleep', '3600.{os.getpid()}'])",
            f"open({str(left)!r}, 'w')",
            "time.sleep(60)",
        )
    )
    checks = {
        "absent": Check("absent", "?", ["pytest", str(tmp_path / "test_absent.py"), *options], None),
        "hangs": Check("hangs", "?", ["timeit", "-n1", "-r1", starts_another], None, minutes=0.05),
        "tests": Check("tests", "?", ["pytest", str(tmp_path / "test_odd.py"), *options], None),
        "gone": Check("gone", "?", ["benchmarks.gone"], None),
        "slow": Check("slow", "?", ["timeit", "-n1", "-r1", "import time; time.sleep(60)"], None, minutes=0.02),
    }
    found = {name: run(check, tmp_path, 1, stand_in=False) for name, check in checks.items()}
    assert summary_of(found["tests"]) == "1 passed, **1 failed**, 1 skipped"
    assert "No module named benchmarks.gone" in summary_of(found["gone"])
    assert summary_of(found["slow"]) == "**failed**: no end within 0.02 minutes"
    assert found["absent"]["problem"] == "every test was skipped"
    assert "**nothing was checked**" in summary_of(found["absent"])
    assert left.exists()
    assert not any(f"3600.{os.getpid()}" in (p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))
    machine = {
        "gpus": ["H100", "H100"],
        "cuda": "13",
        "cudnn": 9,
        "versions": {},
        "commit": "",
        "date": "",
        "stand_in": False,
    }
    text = page(machine, {name: ("Does it?", of_check) for name, of_check in found.items()})
    assert "- GPUs: 2 x H100" in text
    assert "- failed: test_wrong\n- skipped: one GPU" in text
    assert "Not run on a GPU" not in text


def test_checks_take_twenty_minutes_or_so() -> None:
    """Their limits, which few of them need, stay within an hour."""
    assert sum(check.minutes for check in CHECKS) <= 60
