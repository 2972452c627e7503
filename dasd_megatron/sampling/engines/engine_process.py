"""An engine in a process of its own: two models at work side by side, where an engine library takes a process for itself.

python -m dasd_megatron.sampling.engines.engine_process FD
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import Request, Sample
from dasd_megatron.sampling.engines.registry import ENGINES
from dasd_megatron.utils.child_process import child_options
from dasd_megatron.utils.errors import UserError

THIS = "dasd_megatron.sampling.engines.engine_process"


class EngineProcess:
    """Generates in a child process, which ends with this one. The model is loaded when it is there: two engines that load at the
    same time would each count the other's memory as its own.

    Raises UserError as the engine does, or where its process ends.
    """

    def __init__(self, model: Path, config: EngineConfig) -> None:
        self._model = model
        self._connection, child = Pipe()
        end_with_parent, environment = child_options()

        def in_child() -> None:
            end_with_parent()
            signal.signal(
                signal.SIGINT, signal.SIG_IGN
            )  # Ctrl-C ends the parent, and that this process, without a word

        command = [sys.executable, "-m", THIS, str(child.fileno())]
        self._process = subprocess.Popen(
            command, env=environment, preexec_fn=in_child, pass_fds=[child.fileno()], stdin=subprocess.DEVNULL
        )
        child.close()
        self._send((ENGINES.get(config.name, "engine.name"), model, config))  # the class itself: it may be a plugin's
        self._received()

    def start(self, requests: Sequence[Request], temperature: float, top_p: float, stop_ids: Sequence[int]) -> None:
        """Begins with these requests (see Engine.generate); `result` has their samples."""
        self._send((list(requests), temperature, top_p, list(stop_ids)))

    def result(self) -> list[Sample]:
        """The samples of the requests that were begun."""
        samples: list[Sample] = self._received()
        return samples

    def _send(self, message: object) -> None:
        with contextlib.suppress(ConnectionError):  # what is received next says why
            self._connection.send(message)

    def _received(self) -> Any:
        try:
            found = self._connection.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            remedy = "its message is above"
            if code == -signal.SIGKILL:
                remedy = "where memory ran out, lower engine.max_batch or engine.max_length"
            raise UserError(f"{self._model}: the engine's process ended (exit code {code}); {remedy}") from None
        if isinstance(found, UserError):
            raise found
        return found


def main() -> None:
    """Entry point of the child."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    try:
        load, model, config = connection.recv()
        engine = load(model, config)
        connection.send("loaded")
        while True:
            connection.send(engine.generate(*connection.recv()))
    except UserError as error:
        connection.send(error)
    except (EOFError, ConnectionError):  # the parent is done
        pass
    sys.stderr.flush()
    os._exit(0)  # taking an engine down in order costs seconds


if __name__ == "__main__":
    main()
