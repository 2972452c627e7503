"""Training runs in processes of their own, which tests stop, kill and start again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from conversion.convert import export_hf, import_hf
from dasd_megatron.config.training import ParallelConfig
from tests.conftest import ROOT
from tests.helpers.forked_ranks import environment_of_ranks, forked
from tests.helpers.tiny_models import random_packs, tiny_model, training_context

PATIENCE = 120.0  # seconds
WATCHED_RANKS = "tests.helpers.watched_ranks"
RESULTS = ("step", "loss", "grad_norm", "lr", "tokens")


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits for it while the process runs; a process that ends first, or never ends, fails the test."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"ended first: {process.communicate()[1][-3000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@dataclass
class Run:
    """One stage of training and its folder. `behaviour` is the environment of `watched_ranks`."""

    context: Path
    model: Path
    parallel: ParallelConfig
    behaviour: dict[str, str]

    @property
    def output(self) -> Path:
        return self.context.with_suffix("")

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m"]
        if self.parallel.world_size > 1:
            ranks = str(self.parallel.world_size)
            command += ["dasd_megatron.runtime.torchrun", "--standalone", "--nproc-per-node", ranks, "-m"]
        return subprocess.Popen(
            [*command, WATCHED_RANKS, str(self.context)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment_of_ranks(), **self.behaviour},
        )

    def finish(self) -> list[dict[str, Any]]:
        """Runs it to its end; its log."""
        if torch.cuda.is_available():  # CUDA doesn't outlive a fork
            process = self.start()
            output, code = process.communicate(timeout=600)[1], process.returncode
        else:
            code, output = forked(WATCHED_RANKS, [str(self.context)], self.parallel.world_size, self.behaviour)
        assert code == 0, output[-3000:]
        return self.log()

    def log(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl so far: what has to come out the same, however long it takes."""
        return [{key: line[key] for key in (*RESULTS, "held_out_loss") if key in line} for line in self.numbers()]

    def numbers(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl so far, with what depends on the machine."""
        path = self.output / "metrics.jsonl"
        text = path.read_text() if path.is_file() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def draws(self) -> set[str]:
        """What was drawn from random generators after each step, on every rank, however often the step was run."""
        return {line for path in self.output.glob("draws-*.jsonl") for line in path.read_text().splitlines()}

    def folders(self) -> list[str]:
        """Folders of the run: checkpoints, whole or not."""
        return sorted(path.name for path in self.output.iterdir() if path.is_dir())

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained weights."""
        from safetensors.torch import load_file

        target = self.context.with_suffix(".hf")
        export_hf(self.output / "checkpoint", target)
        weights: dict[str, torch.Tensor] = load_file(target / "model.safetensors")
        return weights


class Runs:
    """Makes runs of one tiny model over the same packs, by default random ones."""

    def __init__(self, folder: Path, family: str = "qwen3", packs: Path | None = None, **fields: Any) -> None:
        self.folder = folder
        self.model = tiny_model(folder / "hf", family, tied=family == "qwen3", **fields)
        import_hf(self.model, folder / "start" / "checkpoint")
        self.packs = packs or random_packs(folder / "packs", 11)

    def run(
        self,
        name: str,
        parallel: ParallelConfig,
        behaviour: dict[str, str] | None = None,
        folder: Path | None = None,
        start: Path | None = None,
        **settings: Any,
    ) -> Run:
        """A run that is yet to be started, from the imported model or the stage in `start`; settings are those of `training`, or
        `memory` and `logging`."""
        context = (folder or self.folder) / f"{name}.json"
        output = context.with_suffix("")
        start = start or self.folder / "start"
        training_context(context, self.model, start, self.packs, output, parallel, **settings)
        return Run(context, self.model, parallel, behaviour or {})

    def undisturbed(self) -> Run:
        """What others are compared with: one process, run to its end."""
        run = self.run("one", ParallelConfig())
        if not run.output.is_dir():
            run.finish()
        return run


def check_same(run: Run, reference: Run) -> None:
    """Bit for bit the same log, random draws and weights."""
    assert run.log() == reference.log()
    assert run.draws() == reference.draws()
    weights, expected = run.weights(), reference.weights()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def check_close(lines: list[dict[str, Any]], reference: list[dict[str, Any]], loss: float, grad_norm: float) -> None:
    """The same steps; losses, held-out ones too, within `loss`, gradient norms within `grad_norm` of each other (relative)."""
    assert [line["step"] for line in lines] == [line["step"] for line in reference]
    pairs = list(zip(lines, reference, strict=True))
    furthest = max(abs(line["loss"] - expected["loss"]) for line, expected in pairs)
    relative = max(abs(line["grad_norm"] / expected["grad_norm"] - 1) for line, expected in pairs)
    print(f"largest differences: loss {furthest:.1e}, gradient norm {relative:.1e} (relative)")
    for line, expected in pairs:
        assert line.keys() == expected.keys()
        assert line.get("held_out_loss", 0.0) == pytest.approx(expected.get("held_out_loss", 0.0), abs=loss)
        assert line["tokens"] == expected["tokens"]
        assert line["lr"] == expected["lr"]
        assert line["loss"] == pytest.approx(expected["loss"], abs=loss)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=grad_norm)
