"""The grace period of a training job: how long before its time limit it must be told to save.

An optimizer step has to end in it, and a checkpoint to be written.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable

from dasd_megatron.artifacts.training_files import METRICS, SAVES
from dasd_megatron.steps.step import Ranks, Step

# As a multiple of the longest step and the longest save so far.
MARGIN = 1.5
POLL = 5.0


def measured_grace_period(step: Step) -> int:
    """Seconds, by what the stage's steps and saves took so far; 0 where nothing is known."""
    if not isinstance(step.processes, Ranks) or step.remote:
        return 0
    longest = [
        max((json.loads(line)["seconds"] for line in path.read_text().splitlines() if line.endswith("}")), default=0.0)
        for path in (step.folder / METRICS, step.folder / SAVES)
        if path.is_file()
    ]
    return math.ceil(MARGIN * sum(longest))


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
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()
