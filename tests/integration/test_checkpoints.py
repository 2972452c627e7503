"""Checkpoints that are written while training continues, and what kills, signals and full disks leave of them."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.megatron_model.process_groups import process_groups
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.utils.errors import Stopped
from tests.conftest import ROOT, TOY
from tests.helpers.tiny_models import CONTEXT, random_packs
from tests.helpers.training_runs import Run, Runs, check_same, wait_until

SAVING = {"steps": 30, "save_every": 4}
# A save takes several steps, so that it is under way at most moments, and its snapshot older than the weights.
SLOW = {"SLOW_WRITES": "0.2", "SLOW_STEPS": "0.05"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def calm(runs: Runs) -> Run:
    """One process, never disturbed, that waits for its saves."""
    run = runs.run("calm", ParallelConfig(), **SAVING, async_save=False)
    run.finish()
    return run


@pytest.fixture(scope="module")
def calm_ranks(runs: Runs) -> Run:
    """The same over two ranks."""
    run = runs.run("calm_ranks", ParallelConfig(data=2), **SAVING, async_save=False)
    run.finish()
    return run


def under_way(run: Run) -> int | None:
    """The step whose checkpoint is being written."""
    asides = [path.name for path in run.output.glob(".step-*.tmp")]
    return int(asides[0].removeprefix(".step-").removesuffix(".tmp")) if asides else None


def test_kills_between_and_inside_saves_change_nothing(runs: Runs, calm_ranks: Run) -> None:
    """kill -9 at random moments; a run that waits for its saves is the reference for one that doesn't."""
    run = runs.run("killed", ParallelConfig(data=2), SLOW, **SAVING)
    chance = random.Random(0)

    def trained_on_inside_a_save() -> bool:
        saving = under_way(run)
        return saving is not None and saving > 4 and bool(run.log()) and run.log()[-1]["step"] > saving

    process = run.start()
    wait_until(trained_on_inside_a_save, process)
    process.kill()
    process.communicate()
    assert under_way(run) is not None
    assert "step-0000004" in run.folders()
    for target in sorted(chance.sample(range(9, 29), 2)):
        process = run.start()
        wait_until(lambda step=target: bool(run.log()) and run.log()[-1]["step"] >= step, process)
        time.sleep(chance.random() * 0.3)
        process.kill()
        process.communicate()
    run.finish()
    assert under_way(run) is None
    check_same(run, calm_ranks)


def stop(run: Run, step: int, send: Callable[[subprocess.Popen[str]], None]) -> tuple[int, str]:
    """Sends a signal after that step; the exit code and what the run said last."""
    process = run.start()
    wait_until(lambda: len(run.log()) >= step, process)
    send(process)
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors.strip().splitlines()[-1]


def check_stopped(run: Run, code: int, said: str, name: str) -> None:
    step = run.log()[-1]["step"]
    assert said == f"train: stopped by {name} after step {step}; saved; run the same command to resume"
    assert code == Stopped.EXIT_CODE == 75
    assert run.folders()[-1] == f"step-{step:07d}"
    assert not (run.output / "checkpoint").exists()
    assert under_way(run) is None


def test_a_signal_saves_and_the_same_command_goes_on(runs: Runs, calm: Run) -> None:
    run = runs.run("signalled", ParallelConfig(), SLOW, **SAVING)
    code, said = stop(run, 6, lambda process: process.send_signal(signal.SIGTERM))
    check_stopped(run, code, said, "SIGTERM")
    run.finish()
    check_same(run, calm)


@pytest.mark.full
def test_signals_to_ranks(runs: Runs, calm_ranks: Run) -> None:
    """To the process that started them, and to one rank alone, twice, inside a save."""
    run = runs.run("signalled_ranks", ParallelConfig(data=2), SLOW, **SAVING)
    code, said = stop(run, 6, lambda process: process.send_signal(signal.SIGUSR1))
    check_stopped(run, code, said, "SIGUSR1")

    def twice(process: subprocess.Popen[str]) -> None:
        rank = psutil.Process(process.pid).children()[1]
        rank.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        rank.send_signal(signal.SIGTERM)

    code, said = stop(run, 17, twice)
    check_stopped(run, code, said, "SIGTERM")
    run.finish()
    check_same(run, calm_ranks)


def test_milestones_stay(runs: Runs) -> None:
    run = runs.run("milestones", ParallelConfig(), steps=14, save_every=2, keep_checkpoints=1, keep_every=4)
    run.finish()
    assert run.folders() == ["checkpoint", "step-0000004", "step-0000008", "step-0000012"]


def fill(disk: Path, spare: int) -> Path:
    """Leaves no more than `spare` bytes free."""
    ballast = disk / "ballast"
    free = psutil.disk_usage(str(disk)).free
    ballast.write_bytes(bytes(free - spare))
    return ballast


@pytest.mark.parametrize("parallel", [ParallelConfig(), ParallelConfig(pipeline=2)], ids=["one", "pp2"])
def test_a_disk_that_fills_up(runs: Runs, parallel: ParallelConfig, small_disk: Callable[[str], Path]) -> None:
    """The thread's failure reaches every rank as one message, and leaves nothing half written."""
    disk = small_disk("16m")
    run = runs.run("train", parallel, {"SLOW_STEPS": "0.1"}, disk, **SAVING)
    process = run.start()
    wait_until(lambda: (run.output / "step-0000004").is_dir(), process)
    ballast = fill(disk, 200_000)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.strip().splitlines()[-1] == (
        f"error: {run.output}/step-0000008: the disk is full; free some space and run the same command again"
    )
    assert run.folders() == ["step-0000004"]
    ballast.unlink()
    assert [line["step"] for line in run.finish()] == list(range(1, SAVING["steps"] + 1))


@pytest.mark.full
def test_a_refusal_that_only_rank_0_sees(runs: Runs) -> None:
    """The other ranks would wait for ever."""
    run = runs.run("refused", ParallelConfig(data=2), {"REFUSE_METADATA": ""}, **SAVING)
    process = run.start()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "step-0000004: the disk is full" in errors.strip().splitlines()[-1]
    assert run.folders() == []


@pytest.mark.full
def test_a_save_under_way_outlives_a_failure_of_training(runs: Runs) -> None:
    run = runs.run("failed", ParallelConfig(data=2), {**SLOW, "FAIL_AT": "6"}, **SAVING)
    process = run.start()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.strip().splitlines()[-1] == "error: the loss is nan"
    assert run.folders() == ["step-0000004"]


def test_a_save_is_of_the_moment_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron.core.dist_checkpointing import ShardedTensor, load

    from dasd_megatron.training.checkpoint.async_save import Save

    changed, write, folder = threading.Event(), Save._write, tmp_path / "saved"

    def late(self: Save, buckets: list[Any]) -> None:
        assert changed.wait(60)
        write(self, buckets)

    def state(tensor: torch.Tensor) -> dict[str, Any]:
        return {"values": ShardedTensor.from_rank_offsets("values", tensor)}

    monkeypatch.setattr(Save, "_write", late)
    values = torch.arange(4.0)
    with process_groups(ParallelConfig(), 0):
        save = Save(state(values), folder, lambda _: None)
        values.zero_()
        assert save.writing
        assert not folder.exists()
        changed.set()
        save.finish()
        assert not save.writing
        assert load(state(torch.empty(4)), str(folder))["values"].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_extra_states_are_neither_saved_nor_loaded(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformer Engine's are pickles. What is in them is saved as tensors: test_te_on_cpu_training.py."""
    from megatron.core.tensor_parallel import RowParallelLinear

    from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
    from dasd_megatron.megatron_model.weights import load_weights
    from dasd_megatron.models.hf_model import HFModel
    from dasd_megatron.training.checkpoint.checkpoints import save_weights

    states: list[torch.Tensor] = []
    monkeypatch.setattr(RowParallelLinear, "get_extra_state", lambda layer: torch.full((99,), 67, dtype=torch.uint8))
    monkeypatch.setattr(RowParallelLinear, "set_extra_state", lambda layer, state: states.append(state))
    with process_groups(ParallelConfig(), 0):
        hf = HFModel(runs.model)
        model = build_model(hf, ParallelConfig(), ModelOptions(), CONTEXT)
        save_weights(model, hf, tmp_path / "saved")
        load_weights(model, tmp_path / "saved")
    assert not states
    assert not any(b"C" * 99 in path.read_bytes() for path in (tmp_path / "saved").glob("*.distcp"))


@pytest.mark.parametrize(
    ("keep", "keep_every", "removed"),
    [(2, None, [2, 4, 6]), (1, 4, [2, 6]), (0, 4, [2, 6, 10]), (0, None, [2, 4, 6, 8, 10]), (9, None, [])],
)
def test_retention(keep: int, keep_every: int | None, removed: list[int]) -> None:
    from dasd_megatron.training.checkpoint.checkpoints import superseded

    folders = [Path(f"step-{step:07d}") for step in (2, 4, 6, 8, 10)]
    assert superseded(folders, keep, keep_every) == [Path(f"step-{step:07d}") for step in removed]


def test_random_states_are_taken_up_again() -> None:
    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

    from dasd_megatron.training.checkpoint.random_state import random_states, set_random_states

    def draw() -> list[float]:
        with get_cuda_rng_tracker().fork():
            tracked = torch.rand(1).item()
        return [random.random(), float(np.random.randn()), torch.rand(1).item(), tracked]

    with process_groups(ParallelConfig(), 0):
        np.random.randn()  # its generator makes two at a time and keeps one
        states = random_states()
        first = draw()
        assert all(a != b for a, b in zip(draw(), first, strict=True))
        set_random_states(states)
        assert draw() == first


@pytest.mark.full
def test_a_launcher_passes_signals_on(tmp_path: Path) -> None:
    """tools/launch.py and tools/train.py exit with 75 and one line, and finish the stage the next time."""
    settings = [f"run_dir={tmp_path}", "training.steps=40", "training.save_every=1000"]
    recipe = str(TOY / "recipe.yaml")
    step = build_steps(load_recipe(Path(recipe), settings))["train_low_temperature"]
    random_packs(step.input_path("packs"), 16)
    tool = [sys.executable, "tools/launch.py", recipe, "--only"]
    subprocess.run([*tool, "import_student", *settings], cwd=ROOT, check=True, timeout=120)

    def start(command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen([*command, *settings], cwd=ROOT, stderr=subprocess.PIPE, text=True)

    train = [sys.executable, "tools/train.py", recipe, "--stage", "low_temperature"]
    log = step.folder / "metrics.jsonl"
    for command, number in (([*tool, step.name], signal.SIGUSR1), (train, signal.SIGTERM)):
        before = len(log.read_text().splitlines()) if log.is_file() else 0
        process = start(command)
        wait_until(lambda seen=before: log.is_file() and len(log.read_text().splitlines()) > seen, process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
        done = json.loads(log.read_text().splitlines()[-1])["step"]
        assert process.returncode == 75, errors[-3000:]
        assert errors.strip().splitlines() == [
            f"{step.name}: stopped by {number.name} after step {done}; saved; run the same command to resume"
        ]
        assert not step.done
    process = start(train)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-3000:]
    assert step.done
    assert len(log.read_text().splitlines()) == 40
