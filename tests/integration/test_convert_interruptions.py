"""Conversions that can't come to their end, or whose surroundings change meanwhile: whole or absent, never half done."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from conversion.convert import export_hf, import_hf
from conversion.megatron_checkpoint import MegatronCheckpoint
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.utils.errors import UserError
from tests.conftest import ROOT
from tests.helpers.conversions import CONVERT, NORM, assert_same, run, weights
from tests.helpers.tiny_models import tiny_model
from tests.helpers.training_runs import Runs


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 60 MB, which takes a moment to convert."""
    folder = tmp_path_factory.mktemp("larger")
    return tiny_model(folder / "hf", vocab_size=20_000, hidden_size=512, intermediate_size=1024, num_hidden_layers=2)


def convert_to(disk: Path, convert: Callable[[Path], object]) -> str:
    """The message of a conversion to a disk that is too small, which leaves nothing on it."""
    from conversion.output_folder import new_folder

    with pytest.raises(UserError) as caught, new_folder(disk / "out") as folder:
        convert(folder)
    assert list(disk.iterdir()) == []
    return str(caught.value)


def test_a_disk_without_space_is_refused_before_anything_is_written(
    larger: Path, small_disk: Callable[[str], Path]
) -> None:
    message = convert_to(small_disk("30m"), lambda folder: import_hf(larger, folder))
    assert "96.1 MB are needed, but 31.5 MB are free" in message


@pytest.mark.parametrize("size", ["1m", "30m", "88m"])
def test_a_disk_that_fills_up_meanwhile(
    larger: Path, size: str, small_disk: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_hf(larger, tmp_path / "megatron")
    monkeypatch.setattr("conversion.convert.check_free_space", lambda folder, needed: None)
    disk = small_disk(size)
    assert "the disk is full" in convert_to(disk, lambda folder: import_hf(larger, folder))
    assert "the disk is full" in convert_to(disk, lambda folder: export_hf(tmp_path / "megatron", folder))


def test_killed_at_any_moment(larger: Path, tmp_path: Path) -> None:
    """SIGKILL to the command alone: its workers end, the output is absent, and the next run is as if nothing had been."""
    generator = random.Random(0)
    megatron = tmp_path / "megatron"
    begin = time.monotonic()
    assert run("import", "--hf", larger, "--megatron", tmp_path / "whole").returncode == 0
    duration = time.monotonic() - begin
    killed = 0
    for attempt in range(8):
        with subprocess.Popen(
            [*CONVERT, "import", "--hf", str(larger), "--megatron", str(megatron)], cwd=ROOT
        ) as process:
            if attempt < 4:
                time.sleep(generator.uniform(0, duration))
            else:  # while it writes
                while process.poll() is None and not list(tmp_path.glob(".megatron.tmp/*.distcp")):
                    time.sleep(0.001)
                time.sleep(generator.uniform(0, 0.1))
            workers = children(process.pid)
            process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, 10)
        assert not alive
        if megatron.exists():  # it was faster
            shutil.rmtree(megatron)
        else:
            killed += 1
    assert killed > 2
    assert run("import", "--hf", larger, "--megatron", megatron).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "megatron"}
    for path in (tmp_path / "whole").glob("*.distcp"):
        assert path.read_bytes() == (megatron / path.name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop(larger: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches the workers as well; a system's SIGTERM may reach the command alone."""
    command = [*CONVERT, "import", "--hf", str(larger), "--megatron", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and not list(tmp_path.glob(".out.tmp/*.distcp")):
            time.sleep(0.001)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=60)
    if process.returncode:  # it may have been faster
        assert (process.returncode, errors.strip()) == (130, "stopped; nothing was left behind")
        assert list(tmp_path.iterdir()) == []


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    from conversion.output_folder import new_folder

    with new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        with pytest.raises(UserError, match="another conversion is writing it"), new_folder(tmp_path / "out"):
            pass
    assert (tmp_path / "out" / "file").read_text() == "content"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.full
def test_an_export_outlives_its_checkpoint(tmp_path: Path) -> None:
    """Training may remove a checkpoint in favour of newer ones while it is being read."""
    hf = HFModel(tiny_model(tmp_path / "hf"))
    import_hf(hf.folder, tmp_path / "megatron")
    checkpoint = MegatronCheckpoint(tmp_path / "megatron")
    shutil.rmtree(tmp_path / "megatron")
    for part in hf.parts:
        assert torch.equal(checkpoint.parameter(part), hf.parameter(part))


@pytest.mark.full
def test_export_while_training_writes_other_checkpoints(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    live = runs.run("live", ParallelConfig(), steps=60, save_every=1, keep_every=1, async_save=True)
    with live.start() as process:
        exported = 0
        while process.poll() is None:
            steps = sorted(live.output.glob("step-*")) if live.output.is_dir() else []
            if len(steps) <= exported:
                time.sleep(0.01)
                continue
            done = run("export", "--megatron", steps[-1], "--hf", tmp_path / steps[-1].name)
            assert done.returncode == 0, done.stderr
            exported = len(steps)
        assert process.returncode == 0
    folders = sorted(tmp_path.glob("step-*"))
    assert len(folders) > 1
    for folder in folders:
        export_hf(live.output / folder.name, tmp_path / f"again-{folder.name}")
        assert_same(weights(folder), weights(tmp_path / f"again-{folder.name}"))
    assert not torch.equal(weights(folders[0])[NORM], weights(folders[-1])[NORM])
