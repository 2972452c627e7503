"""Signals that ask training to stop: it ends the step it is in, saves and exits, so that the same command resumes.

SIGTERM is what schedulers send before they kill, and SIGUSR1 what they can be told to send some time before that.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass
class StopRequest:
    """What came so far: 0, or the number of a signal. Ranks have to agree before one acts on it."""

    signal_number: int = 0


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """While open, a stop signal is only noted down, however often it comes."""
    request = StopRequest()

    def note(number: int) -> None:
        request.signal_number = number

    with handled_by(note):
        yield request


@contextlib.contextmanager
def handled_by(handler: Callable[[int], None]) -> Iterator[None]:
    """While open, stop signals to this process call `handler` with their number."""
    before = {number: signal.signal(number, lambda got, _: handler(got)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
