"""An engine in a process of its own: two models at work side by side, where an engine library takes a process for itself.

python -m dasd_megatron.sampling.engines.engine_process FD
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import Ended, Engine, Request
from dasd_megatron.sampling.engines.registry import ENGINES
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.piped_process import PipedProcess, parent_connection
from dasd_megatron.utils.process_group import exit_at_once

THIS = "dasd_megatron.sampling.engines.engine_process"


class EngineProcess(PipedProcess):
    """Generates in a child process, which ends with this one. The model is loaded when it is there: two engines that load at the
    same time would each count the other's memory as its own.

    Raises UserError as the engine does, or where its process ends.
    """

    def __init__(self, model: Path, config: EngineConfig) -> None:
        super().__init__(THIS, f"{model}: the engine's process", "lower engine.max_batch or engine.max_length")
        # The class itself: it may be a plugin's.
        self.send((ENGINES.get(config.name, "engine.name"), model, config))
        self.receive()

    def ask(self, requests: Sequence[Request]) -> None:
        """Gives the engine more to do; requests are numbered from 0 in the order that they are given in."""
        self.send(list(requests))

    def ended(self) -> Ended:
        """Waits for the next samples (see Engine.generate)."""
        samples: Ended = self.receive()
        return samples


def main() -> None:
    """Entry point of the child."""
    connection = parent_connection()
    try:
        load, model, config = connection.recv()
        engine: Engine = load(model, config)
        connection.send("loaded")
        _generate(engine, connection)
    except UserError as error:
        connection.send(error)
    except (EOFError, ConnectionError):  # the parent is done
        pass
    sys.stderr.flush()
    exit_at_once()  # taking an engine down in order costs seconds


def _generate(engine: Engine, connection: Connection[Any, Any]) -> None:
    """Until the connection ends."""
    arrived: SimpleQueue[list[Request] | None] = SimpleQueue()
    # A thread takes them, so that the parent never waits with requests for a child that waits with samples.
    threading.Thread(target=_receive, args=(connection, arrived), daemon=True).start()
    in_flight = 0

    def requests() -> Iterator[Request | None]:
        nonlocal in_flight
        waiting: deque[Request] = deque()
        while True:
            if not waiting and (not in_flight or not arrived.empty()):
                if (more := arrived.get()) is None:
                    return
                waiting.extend(more)
            if waiting:
                in_flight += 1
                yield waiting.popleft()
            else:
                yield None

    for ended in engine.generate(requests()):
        in_flight -= len(ended)
        connection.send(ended)


def _receive(connection: Connection[Any, Any], arrived: SimpleQueue[list[Request] | None]) -> None:
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            arrived.put(connection.recv())
    arrived.put(None)


if __name__ == "__main__":
    main()
