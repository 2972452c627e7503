"""A trace of some optimizer steps, of the first rank."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function


class StepProfiler:
    """Writes what the steps of a window did on the host and on the GPU to `profile-FROM-TO.json.gz`."""

    def __init__(self, window: tuple[int, int] | None, folder: Path) -> None:
        """`window`: the first and the last step; None: nothing is profiled."""
        self._window, self._folder = window, folder
        self._profile: profile | None = None

    @contextlib.contextmanager
    def of(self, step: int) -> Iterator[None]:
        """Around each step. A window that a stage was resumed in is profiled from there on."""
        if self._window is None or dist.get_rank() != 0 or not self._window[0] <= step <= self._window[1]:
            yield
            return
        if self._profile is None:
            self._profile = profile(activities=_activities())
            self._profile.start()
        with record_function(f"step {step}"):
            yield
        if step == self._window[1]:
            self._write(self._profile)

    def _write(self, done: profile) -> None:
        """Waits for the GPU."""
        assert self._window is not None
        done.stop()
        path = self._folder / f"profile-{self._window[0]}-{self._window[1]}.json.gz"
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=".", suffix=".tmp") as folder:
            done.export_chrome_trace(f"{folder}/{path.name}")
            (Path(folder) / path.name).replace(path)
        print(f"{path}: open it in https://ui.perfetto.dev", file=sys.stderr, flush=True)


def _activities() -> list[ProfilerActivity]:
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
