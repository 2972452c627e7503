"""An engine in a process of its own: two models at work side by side, where an engine library takes a process for itself.

python -m dasd_megatron.sampling.engines.engine_process FD
"""

from __future__ import annotations

import contextlib
import os
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
    """Generates in a child process, which ends with this one. Loads while this process goes on; errors come with the result."""

    def __init__(self, model: Path, config: EngineConfig) -> None:
        self._model = model
        self._connection, child = Pipe()
        in_child, environment = child_options()
        command = [sys.executable, "-m", THIS, str(child.fileno())]
        self._process = subprocess.Popen(
            command, env=environment, preexec_fn=in_child, pass_fds=[child.fileno()], stdin=subprocess.DEVNULL
        )
        child.close()
        self._send((ENGINES.get(config.name, "engine.name"), model, config))  # the class itself: it may be a plugin's

    def start(self, requests: Sequence[Request], temperature: float, top_p: float, stop_ids: Sequence[int]) -> None:
        """Begins with these requests (see Engine.generate); `result` has their samples."""
        self._send((list(requests), temperature, top_p, list(stop_ids)))

    def result(self) -> list[Sample]:
        """The samples of the requests that were begun. Raises UserError as the engine does, or where its process ended."""
        try:
            found: list[Sample] | UserError = self._connection.recv()
        except (EOFError, ConnectionError):
            raise UserError(
                f"{self._model}: the engine's process ended (exit code {self._process.wait()}); where memory ran out, lower "
                "engine.gpu_memory_utilization, engine.max_batch or engine.max_length"
            ) from None
        if isinstance(found, UserError):
            raise found
        return found

    def _send(self, message: object) -> None:
        with contextlib.suppress(ConnectionError):  # `result` says why
            self._connection.send(message)


def main() -> None:
    """Entry point of the child."""
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    try:
        load, model, config = connection.recv()
        engine = load(model, config)
        while True:
            connection.send(engine.generate(*connection.recv()))
    except UserError as error:
        connection.send(error)
    except (EOFError, ConnectionError, KeyboardInterrupt):  # the parent is done
        pass
    sys.stderr.flush()
    os._exit(0)  # taking an engine down in order costs seconds


if __name__ == "__main__":
    main()
