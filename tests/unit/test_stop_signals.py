"""Signals that ask to stop: noted down by training, passed on by what started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from dasd_megatron.utils.child_process import forward_signals
from dasd_megatron.utils.errors import Stopped
from dasd_megatron.utils.stop_signals import SIGNALS, stop_requests


@pytest.mark.parametrize("number", SIGNALS)
def test_a_request_is_noted_down_and_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with stop_requests() as stop:
        assert stop.signal_number == 0
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_signals_go_to_the_child_and_not_to_this_process() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with forward_signals(lambda: [child.pid]) as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert child.wait(timeout=30) == -signal.SIGUSR1
        assert signals == {signal.SIGUSR1}
        os.kill(os.getpid(), signal.SIGTERM)  # to a child that has gone
        time.sleep(0.01)
    assert signals == {signal.SIGUSR1, signal.SIGTERM}


def test_a_signal_before_there_is_a_child_stops_at_once() -> None:
    with forward_signals(list), pytest.raises(Stopped):
        signal.raise_signal(signal.SIGTERM)
