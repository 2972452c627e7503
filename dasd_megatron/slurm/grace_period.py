"""The grace period of a training job: how long before its time limit it must be told to save.

An optimizer step has to end in it, and a checkpoint to be written.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dasd_megatron.artifacts.training_files import METRICS, SAVES
from dasd_megatron.steps.step import Ranks, Step
from dasd_megatron.utils.errors import UserError

# As a multiple of the longest of the last steps and the longest of the last saves.
MARGIN = 1.5
# The last so many count: a node that once stood still says nothing of all later jobs.
RECENT = {METRICS: 100, SAVES: 5}
POLL = 5.0


def measured_grace_period(step: Step) -> int:
    """Seconds, by what the stage's last steps and saves took; 0 where nothing is known."""
    if not isinstance(step.processes, Ranks) or step.remote:
        return 0
    paths = [(step.folder / name, recent) for name, recent in RECENT.items()]
    return math.ceil(MARGIN * sum(_longest(path, recent) for path, recent in paths if path.is_file()))


def _longest(path: Path, recent: int) -> float:
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]  # the last may be half written
    return max((json.loads(line)["seconds"] for line in lines[-recent:]), default=0.0)


class EarlyStop:
    """Calls `stop` once the job's time is no longer than `measured_grace_period`.

    Slurm's own signal comes at a time fixed at submission, when a first stage's saves aren't known yet.
    """

    def __init__(self, step: Step, ends: float, stop: Callable[[], None]) -> None:
        """`ends`: when the time limit is reached, in seconds since the epoch."""
        self._step, self._ends, self._stop = step, ends, stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._over.wait(POLL):
            if time.time() > self._ends - measured_grace_period(self._step):
                self._stop()
                return

    def __enter__(self) -> EarlyStop:
        """Raises UserError where no time is left to train in: each job would be stopped as soon as it began."""
        needed, left = measured_grace_period(self._step), self._ends - time.time()
        if needed >= left:
            raise UserError(
                f"{self._step.name}: its last steps and saves took so long that it must be told to stop {needed} seconds before "
                f"its time limit, and the job has {max(0, math.floor(left))}; raise launch.training.time and submit again"
            )
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
