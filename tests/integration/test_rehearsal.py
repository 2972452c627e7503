"""`dasd launch --rehearse` on this machine: what works is measured, and what can't work is found, with one message."""

from __future__ import annotations

import json
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.rehearsal.rehearsed_recipe import SAVE_EVERY, STEPS
from dasd_megatron.sampling.engine_probe import TYPICAL_TOKENS
from dasd_megatron.utils.lease import hold
from tests.conftest import ROOT, TOY

RECIPE = str(TOY / "recipe.yaml")
# The reference engine starts faster than vLLM; a stage of each kind is enough.
QUICK = [
    "engine.name=transformers",
    "engine.max_batch=64",
    "launch.replicas=1",
    "evaluation.temperatures=[0, 1.0]",
    "stages=[{name: low_temperature, kind: sampled, temperature: 0.6}, {name: mixed_policy, kind: mixed_policy}]",
]


def rehearse(folder: Path, *overrides: str, memory: int | None = None) -> subprocess.CompletedProcess[str]:
    """`memory`: address space of each process, in bytes."""

    def limit() -> None:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    command = [sys.executable, "tools/launch.py", RECIPE, *QUICK, f"run_dir={folder / 'run'}", *overrides, "--rehearse"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, preexec_fn=limit)


@pytest.mark.full
def test_a_rehearsal_measures_and_concludes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = rehearse(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "run").exists()
    folder = tmp_path / "run-rehearsal"
    monkeypatch.chdir(ROOT)
    steps = build_steps(load_recipe(folder / "recipe.yaml"))
    assert all(step.done for step in steps.values())

    # Saved, killed, and resumed from what was saved.
    assert f"train_low_temperature: killed after step {SAVE_EVERY + 1}, to see it resume" in done.stderr
    stage = steps["train_low_temperature"].folder
    assert [json.loads(line)["step"] for line in (stage / "metrics.jsonl").read_text().splitlines()] == [
        *range(1, STEPS + 1)
    ]
    assert [json.loads(line)["step"] for line in (stage / "saves.jsonl").read_text().splitlines()] == [3, 6]
    packs = Artifact(steps["worst_case_packs_low_temperature"].folder)
    lengths = sorted(len(row["document_lengths"]) for row in packs.rows("packs", ["document_lengths"]))
    assert lengths[0] == 1
    assert lengths[-1] > 16

    out = done.stdout
    assert "verdict: every step works" in out
    for row in ("teacher: decodes, an engine", "student: scores, an engine", "training: memory of the fullest rank"):
        assert re.search(rf"^{row} +[\d,.]+ (tokens/s|GiB)", out, re.MULTILINE), row
    hours = re.search(r"^hours: ([\d.]+), one step after another$", out, re.MULTILINE)
    assert hours is not None
    assert 0 < float(hours[1]) < 5
    pasted = yaml.safe_load(out.partition("plans with it:\n")[2].partition("verdict:")[0])["expected"]
    assert 20 < pasted["response_tokens"] < 160
    load_recipe(Path(RECIPE), [f"expected={json.dumps(pasted)}"])

    check_typical_lengths(folder / "recipe.yaml")
    again = rehearse(tmp_path)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.count(": done before") == len(steps)
    assert "verdict: every step works" in again.stdout


def check_typical_lengths(file: Path) -> None:
    """As on GPUs, where it's known how many sequences of the run's lengths an engine has room for: eight of 40 tokens."""
    recipe = file.with_name("typical.yaml")
    content = yaml.safe_load(file.read_text())
    content["rehearsal"]["typical"] = {"teacher": [40, 8]}
    recipe.write_text(yaml.safe_dump(content))
    command = [sys.executable, "tools/launch.py", str(recipe), "--only", "probe_teacher"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    probe = build_steps(load_recipe(recipe))["probe_teacher"]
    found = Artifact(probe.folder).manifest["probe"]
    assert found["typical_tokens"] == 8 * TYPICAL_TOKENS
    assert found["typical_seconds"] > 0


def check_found(done: subprocess.CompletedProcess[str], message: str) -> None:
    """One error, and no traceback."""
    assert done.returncode == 2, done.stdout[-2000:] + done.stderr[-2000:]
    assert message in done.stderr
    assert len(re.findall("^error: ", done.stderr, re.MULTILINE)) == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert "verdict: every step works" not in done.stdout


def test_two_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run-rehearsal"
    folder.mkdir()
    with hold(folder / ".rehearsal", ""):
        check_found(rehearse(tmp_path), f"{folder}: another process is rehearsing this run; wait for it")


def test_a_tokenizer_without_template(tmp_path: Path) -> None:
    student = shutil.copytree(TOY / "student", tmp_path / "student")
    (student / "chat_template.jinja").unlink()
    done = rehearse(tmp_path, f"student.model={student}")
    check_found(done, "chat template")


def test_an_engine_that_cannot_load(tmp_path: Path) -> None:
    teacher = shutil.copytree(TOY / "teacher", tmp_path / "teacher")
    weights = teacher / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:10_000])
    done = rehearse(tmp_path, f"teacher.model={teacher}")
    check_found(done, f"{teacher}: the model can't be loaded")


def test_a_server_that_refuses(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    servers = f"engine.teacher={{name: server, server: {{endpoints: ['{address}'], patience: 2}}}}"
    check_found(rehearse(tmp_path, servers), address)


def test_a_full_disk(tmp_path: Path, small_disk: Callable[[str], Path]) -> None:
    done = rehearse(small_disk("64k"))
    check_found(done, "are free; free some, or choose another disk")


@pytest.mark.full
def test_too_little_memory_for_the_longest_pack(tmp_path: Path) -> None:
    """Found by the packs that need most, whatever lengths the first responses have: here it ends before attention begins."""
    one = ("parallel.data=1", "training.global_batch=1")
    done = rehearse(tmp_path, f"packing.context_length={1 << 22}", *one, memory=7 << 30)
    check_found(done, "train_low_temperature: packs of 4,194,304 tokens: out of memory")
    assert "raise parallel.context, tensor or pipeline, or set memory.recompute" in done.stderr
