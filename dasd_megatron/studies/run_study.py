"""Runs the steps of a study on this machine: each once, as many at a time as there are cores and GPUs for."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dasd_megatron.runtime.local_runner import check_not_on_a_cluster, start
from dasd_megatron.steps.step import Step
from dasd_megatron.studies.durations import clock, seconds_by_kind, seconds_of
from dasd_megatron.studies.machine_shares import Machine, Share
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
    """A step's process.

    Attributes:
        log: what it prints, after what attempts before it have printed.
        begins: where in it.
    """

    step: Step
    run: StudyRun
    process: subprocess.Popen[bytes]
    share: Share
    log: Path
    begins: int
    started: float = field(default_factory=time.monotonic)

    @property
    def label(self) -> str:
        """The step, and the first arm and seed that need it."""
        return f"{self.step.name} ({self.run.arm}, seed {self.run.seed})"


def run_study(study: Study) -> None:
    """Runs every step that isn't done, and publishes each run that is.

    A step that fails holds up what needs it alone. Raises UserError at the end where one did, and Stopped at a stop signal.
    """
    folder = study.config.study_dir
    with hold(
        folder / ".lock", f"{folder}: another process is running this study; wait for it, or choose another study_dir"
    ):
        check_not_on_a_cluster(folder)
        for run in study.runs:
            run.write_recipe()
        failures = _Runner(study).run()
        for run in study.runs:
            if run.done:
                run.publish()
    if failures:
        raise UserError("\n".join(failures) + "\nrun the same command again to resume from here; what is done is done")


class _Runner:
    """Keeps as many processes going as there is room for."""

    def __init__(self, study: Study) -> None:
        self._logs = study.config.study_dir / "logs"
        self._steps = steps_of(study)
        self._left = {name: step for name, (step, _) in self._steps.items() if not step.done}
        self._machine = Machine()
        self._running: list[_Running] = []
        self._failures: list[str] = []
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
                    self._machine.give_back(running.share)
                    self._end(running)
        return [
            *self._failures,
            *([f"{len(self._left)} steps need what failed"] if self._left and self._failures else []),
        ]

    def _start_some(self) -> None:
        """Starts steps whose inputs are there, in the study's order, while there is room for them."""
        for name, step in list(self._left.items()):
            share = self._machine.take(step) if _is_ready(step) else None
            if share is None:
                continue
            del self._left[name]
            log, run = self._logs / f"{name}.log", self._steps[name][1]
            begins = log.stat().st_size if log.exists() else 0
            with log.open("ab") as file:
                process = start(step, run.file, [], file, share.cores, share.gpus)
            self._running.append(_Running(step, run, process, share, log, begins))

    def _end(self, running: _Running) -> None:
        """Tells how a step ended."""
        seconds, code = time.monotonic() - running.started, running.process.returncode
        if code == 0:
            self._seconds.setdefault(running.step.kind.name, []).append(seconds)
            number = len(self._steps) - len(self._left) - len(self._running) - len(self._failures)
            print(f"[{number}/{len(self._steps)}] {running.label}: {seconds:.1f} s{self._time_left()}", flush=True)
            return
        how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        message = f"{running.label} failed ({how}): {_message(running)}"
        self._failures.append(message)
        print(f"failed: {message}", flush=True)

    def _time_left(self) -> str:
        """By how long steps of the same kind have taken."""
        steps = [*self._left.values(), *(running.step for running in self._running)]
        seconds = seconds_of(self._seconds, ((step, self._machine.part(step)) for step in steps))
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


def _message(running: _Running) -> str:
    """What a step that failed has said, and where the rest is."""
    with running.log.open("rb") as file:
        file.seek(max(running.begins, running.log.stat().st_size - TAIL))
        text = file.read().decode(errors="replace")
    said = [line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: ")]
    return f"{said[-1]} ({running.log})" if said else f"see {running.log}"
