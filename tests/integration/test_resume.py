"""A stage that resumes in another layout, past a damaged checkpoint, or with nothing left to do."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.utils.errors import Stopped
from tests.helpers.damage import overwrite_an_item
from tests.helpers.marks import mostly_full
from tests.helpers.training_runs import Runs, check_close, wait_until

LAYOUTS = {
    "dp2-to-dp1": (ParallelConfig(data=2), ParallelConfig()),
    "tp2-to-tp1": (ParallelConfig(tensor=2), ParallelConfig()),
    "pp2-to-pp1": (ParallelConfig(pipeline=2), ParallelConfig()),
    "interleaved-to-pp1": (ParallelConfig(pipeline=2, virtual_pipeline=2), ParallelConfig()),
    "cp2-to-cp1": (ParallelConfig(context=2), ParallelConfig()),
    "pp2xdp2-to-dp1": (ParallelConfig(pipeline=2, data=2), ParallelConfig()),
    "tp1-to-tp2xpp2": (ParallelConfig(), ParallelConfig(tensor=2, pipeline=2)),
}
EXPERT_LAYOUTS = {
    "ep2-to-ep1": (ParallelConfig(data=2, expert=2), ParallelConfig()),
    "ep1-to-tp2xep2": (ParallelConfig(), ParallelConfig(tensor=2, expert=2)),
}


def check_resume(runs: Runs, name: str, first: ParallelConfig, second: ParallelConfig) -> None:
    """Trains in one layout to the middle, and resumes in the other."""
    run = runs.run(name, first, {"SLOW_STEPS": "0.1"}, save_every=5)
    process = run.start()
    wait_until(lambda: "step-0000010" in run.folders() if run.output.is_dir() else False, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(run.log()) < 20
    lines = runs.run(name, second, save_every=5).finish()
    # Steps after the resumed one differ by the order of sums only, as between layouts; the optimizer's state went along.
    check_close(lines, runs.undisturbed().log(), loss=1e-5, grad_norm=1e-4)


@pytest.mark.parametrize("name", mostly_full(LAYOUTS, ("tp2-to-tp1",)))
def test_resume_in_another_layout(dense: Runs, name: str) -> None:
    check_resume(dense, name, *LAYOUTS[name])


@pytest.mark.parametrize("name", mostly_full(EXPERT_LAYOUTS, ()))
def test_resume_experts_in_another_layout(experts: Runs, name: str) -> None:
    check_resume(experts, name, *EXPERT_LAYOUTS[name])


def test_a_damaged_checkpoint_is_skipped(dense: Runs) -> None:
    """And isn't kept as the newest at the cost of those that are saved next."""
    settings = {"save_every": 4, "keep_checkpoints": 2}
    run = dense.run("damaged", ParallelConfig(), {"SLOW_STEPS": "0.1"}, **settings)
    process = run.start()
    wait_until(lambda: "step-0000012" in run.folders() if run.output.is_dir() else False, process)
    process.kill()
    process.communicate()
    newest = sorted(run.output.glob("step-*"))[-1]
    for path in newest.glob("*.distcp"):
        os.truncate(path, path.stat().st_size // 2)
    once = dense.run("damaged", ParallelConfig(), {"SLOW_STEPS": "0.1"}, save_every=4, keep_checkpoints=1)
    process = once.start()
    wait_until(lambda: bool(once.log()) and once.log()[-1]["step"] == 9, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == Stopped.EXIT_CODE, errors[-2000:]
    assert f"{newest}: can't be loaded as a checkpoint of this model" in errors
    assert "falling back to the checkpoint before" in errors
    stopped = once.log()[-1]["step"]
    assert [name for name in once.folders() if name.startswith("step-")] == [f"step-{stopped:07d}"]
    assert any(name.startswith(f"damaged-{newest.name}") for name in once.folders())
    assert run.finish() == dense.undisturbed().log()
    assert once.folders() == ["checkpoint"]


@pytest.mark.full
def test_damage_that_one_rank_sees_is_skipped_by_all(dense: Runs) -> None:
    """Each reads its own share; the others would wait for ever."""
    run = dense.run("damaged-share", ParallelConfig(data=2), {"FAIL_AT": "10"}, save_every=4)
    assert "the loss is nan" in run.start().communicate(timeout=300)[1]
    os.truncate(run.output / "step-0000008" / "__1_0.distcp", 1000)
    del run.behaviour["FAIL_AT"]
    process = run.start()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors[-2000:]
    assert errors.count("falling back to the checkpoint before") == 1
    check_close(run.log(), dense.undisturbed().log(), 5e-6, 1e-5)


def test_damage_that_can_still_be_read_is_noticed(dense: Runs) -> None:
    """Other numbers, no index, and an index with another byte; in a line each."""
    settings = {"save_every": 2, "keep_checkpoints": 4}
    run = dense.run("other-bytes", ParallelConfig(), {"FAIL_AT": "9"}, **settings)
    assert "the loss is nan" in run.start().communicate(timeout=300)[1]
    overwrite_an_item(run.output / "step-0000008")
    (run.output / "step-0000006" / ".metadata").unlink()
    with (run.output / "step-0000004" / ".metadata").open("r+b") as file:
        file.seek(-2, os.SEEK_END)
        file.write(b"?")
    del run.behaviour["FAIL_AT"]
    process = run.start()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    warnings = [line for line in errors.splitlines() if "falling back to the checkpoint before" in line]
    assert [name in warning for name, warning in zip(("0008", "0006", "0004"), warnings, strict=True)] == [True] * 3
    assert "damaged: Bad CRC-32 for file" in warnings[0]
    assert "Traceback" not in errors
    assert run.log() == dense.undisturbed().log()


def test_a_damaged_start_is_refused(dense: Runs, tmp_path: Path) -> None:
    shutil.copytree(dense.folder / "start", tmp_path / "start")
    overwrite_an_item(tmp_path / "start" / "checkpoint")
    run = dense.run("damaged-start", ParallelConfig(), start=tmp_path / "start")
    process = run.start()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert re.search(r"damaged: Bad CRC-32 .*; delete .*/start, and the step that writes it runs again", errors)


@pytest.mark.full
def test_a_checkpoint_under_another_name_is_not_taken_up(dense: Runs) -> None:
    run = dense.run("renamed", ParallelConfig(), {"SLOW_STEPS": "0.1"}, save_every=4)
    process = run.start()
    wait_until(lambda: "step-0000004" in run.folders() if run.output.is_dir() else False, process)
    process.kill()
    process.communicate()
    shutil.copytree(run.output / "step-0000004", run.output / "step-0000019")
    assert run.finish() == dense.undisturbed().log()


def test_a_stage_killed_before_its_mark_is_not_trained_again(dense: Runs) -> None:
    """The final weights are there, COMPLETE is not: the same weights and log stay."""
    run = dense.run("unmarked", ParallelConfig())
    lines = run.finish()
    files = {path: path.stat().st_mtime_ns for path in (run.output / "checkpoint").iterdir()}
    assert run.finish() == lines
    assert {path: path.stat().st_mtime_ns for path in (run.output / "checkpoint").iterdir()} == files


@pytest.mark.full
def test_state_of_a_whole_optimizer_is_not_taken_for_that_of_a_distributed_one(dense: Runs) -> None:
    run = dense.run("optimizers", ParallelConfig(data=2), {"SLOW_STEPS": "0.1"}, save_every=5)
    process = run.start()
    wait_until(lambda: "step-0000005" in run.folders() if run.output.is_dir() else False, process)
    process.kill()
    process.communicate()
    process = dense.run("optimizers", ParallelConfig(data=2, distributed_optimizer=False), save_every=5).start()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert (
        "was written with parallel.distributed_optimizer=True; its optimizer state can only be restored with that"
        in errors
    )
    assert "step-0000005" in run.folders()  # nothing is lost
    lines = dense.run("optimizers", ParallelConfig(data=2), save_every=5).finish()
    check_close(lines, dense.undisturbed().log(), loss=1e-5, grad_norm=1e-4)


def test_bf16_learns(dense: Runs) -> None:
    expected = dense.undisturbed().log()[-1]["loss"]
    lines = dense.run("bf16", ParallelConfig(), precision="bf16").finish()
    assert lines[-1]["loss"] == pytest.approx(expected, abs=0.05)
