"""Runs the steps of a study on this machine: each once, as many at a time as there are cores for."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dasd_megatron.runtime.local_runner import check_not_on_a_cluster, start
from dasd_megatron.runtime.publish import publish
from dasd_megatron.steps.step import Step
from dasd_megatron.studies.durations import clock, core_count, cores_of, seconds_by_kind, seconds_of
from dasd_megatron.studies.study import Study, StudyRun, steps_of
from dasd_megatron.utils.errors import Stopped, UserError
from dasd_megatron.utils.lease import hold
from dasd_megatron.utils.stop_signals import handled_by

# Seconds between looks at the processes.
POLL = 0.1
# Of a failed step's log, what is looked through for its message.
TAIL = 4_000


@dataclass
class _Running:
    """A step's process."""

    step: Step
    run: StudyRun
    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def label(self) -> str:
        """The step, and the first arm and seed that need it."""
        return f"{self.step.name} ({self.run.arm}, seed {self.run.seed})"


def run_study(study: Study) -> None:
    """Runs every step that isn't done, and publishes each run.

    A step that fails holds up what needs it alone. Raises UserError at the end where one did, and Stopped at a stop signal.
    """
    folder = study.config.study_dir
    with hold(
        folder / ".lock", f"{folder}: another process is running this study; wait for it, or choose another study_dir"
    ):
        for run in study.runs:
            check_not_on_a_cluster(run.recipe)
            run.write_recipe()
        failures = _Runner(study).run()
        for run in study.runs:
            if all(step.done for step in run.steps.values()):
                publish(run.recipe, run.steps)
    if failures:
        raise UserError("\n".join(failures) + "\nrun the same command again to resume from here; what is done is done")


class _Runner:
    """Keeps as many processes going as there are cores for."""

    def __init__(self, study: Study) -> None:
        self._logs = study.config.study_dir / "logs"
        self._steps = steps_of(study)
        self._left = {name: step for name, (step, _) in self._steps.items() if not step.done}
        self._cores = core_count()
        self._running: list[_Running] = []
        self._failures: list[str] = []
        self._failed: set[str] = set()
        self._seconds = seconds_by_kind(step for step, _ in self._steps.values())

    def run(self) -> list[str]:
        """Runs them. Returns a message for each that failed."""
        print(f"{len(self._steps)} steps, {len(self._steps) - len(self._left)} of them done before", flush=True)
        self._logs.mkdir(parents=True, exist_ok=True)
        with self._stopped_together():
            while self._left or self._running:
                self._start_some()
                if not self._running:
                    break
                time.sleep(POLL)
                for running in [one for one in self._running if one.process.poll() is not None]:
                    self._running.remove(running)
                    self._end(running)
        return [
            *self._failures,
            *([f"{len(self._left)} steps need what failed"] if self._left and self._failed else []),
        ]

    def _start_some(self) -> None:
        """Starts steps whose inputs are there, in the study's order, while there are cores for them."""
        for name, step in list(self._left.items()):
            free = self._cores - sum(cores_of(running.step, self._cores) for running in self._running)
            if free <= 0:
                return
            if cores_of(step, self._cores) <= free and _is_ready(step):
                del self._left[name]
                log, run = self._logs / f"{name}.log", self._steps[name][1]
                with log.open("ab") as file:
                    self._running.append(_Running(step, run, start(step, run.file, [], file), log))

    def _end(self, running: _Running) -> None:
        """Tells how a step ended."""
        seconds = time.monotonic() - running.started
        number = len(self._steps) - len(self._left) - len(self._running) - len(self._failures)
        if running.process.returncode == 0:
            self._seconds.setdefault(running.step.kind.name, []).append(seconds)
            print(f"[{number}/{len(self._steps)}] {running.label}: {seconds:.1f} s{self._time_left()}", flush=True)
            return
        self._failed.add(running.step.folder.name)
        message = f"{running.label} failed (exit code {running.process.returncode}): {_message(running.log)}"
        self._failures.append(message)
        print(f"failed: {message}", flush=True)

    def _time_left(self) -> str:
        """By how long steps of the same kind have taken."""
        seconds = seconds_of(
            self._seconds, [*self._left.values(), *(running.step for running in self._running)], self._cores
        )
        return "" if seconds is None or not self._left else f", about {clock(seconds)} left"

    @contextmanager
    def _stopped_together(self) -> Iterator[None]:
        """A stop signal ends all steps, training after a save; so does what ends this process."""

        def stop(number: int) -> None:
            raise Stopped("stopped; the same command resumes from here")

        try:
            with handled_by(stop):
                yield
        finally:
            for running in self._running:
                running.process.send_signal(signal.SIGTERM)
            for running in self._running:
                running.process.wait()


def _is_ready(step: Step) -> bool:
    return all(source.done for source in step.inputs.values() if isinstance(source, Step))


def _message(log: Path) -> str:
    """What a step that failed has said, and where the rest is."""
    text = log.read_bytes()[-TAIL:].decode(errors="replace")
    said = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    return f"{said[-1]} ({log})" if said else f"see {log}"
