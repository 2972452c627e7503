"""An engine in a process of its own: two models at work side by side, where an engine library takes a process for itself."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import Request, Sample
from dasd_megatron.sampling.engines.registry import load_engine
from dasd_megatron.utils.child_process import die_with
from dasd_megatron.utils.errors import UserError


class EngineProcess:
    """Generates in a child process, which ends with this one. Loads while this process goes on; errors come with the result."""

    def __init__(self, model: Path, config: EngineConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self._process = context.Process(target=_serve, args=(child, os.getpid(), model, config), daemon=True)
        self._process.start()
        child.close()
        self._model = model

    def start(self, requests: Sequence[Request], temperature: float, top_p: float, stop_ids: Sequence[int]) -> None:
        """Begins with these requests (see Engine.generate); `result` has their samples."""
        with contextlib.suppress(BrokenPipeError):  # `result` says why
            self._connection.send((list(requests), temperature, top_p, list(stop_ids)))

    def result(self) -> list[Sample]:
        """The samples of the requests that were begun. Raises UserError as the engine does, or where its process ended."""
        try:
            found: list[Sample] | UserError = self._connection.recv()
        except EOFError:
            self._process.join()
            raise UserError(
                f"{self._model}: the engine's process ended (exit code {self._process.exitcode}); where memory ran out, lower "
                "engine.gpu_memory_utilization, engine.max_batch or engine.max_length"
            ) from None
        if isinstance(found, UserError):
            raise found
        return found


def _serve(connection: Connection[Any, Any], parent: int, model: Path, config: EngineConfig) -> None:
    die_with(parent)
    try:
        engine = load_engine(model, config)
        while True:
            connection.send(engine.generate(*connection.recv()))
    except UserError as error:
        connection.send(error)
    except (EOFError, KeyboardInterrupt):  # the parent is done
        pass
    os._exit(0)  # taking an engine down in order costs seconds
