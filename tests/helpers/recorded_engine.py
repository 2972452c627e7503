"""A plugin: the reference engine, which notes in a file what it is asked for and what it gives."""

from __future__ import annotations

import os
from collections.abc import Iterator

from dasd_megatron.sampling.engines import transformers_engine
from dasd_megatron.sampling.engines.engine import Ended, Requests
from dasd_megatron.sampling.engines.registry import ENGINES
from dasd_megatron.sampling.engines.transformers_engine import TransformersEngine

transformers_engine.READ_AHEAD = 1  # what it takes is in flight
# Variable: the file.
RECORD = "TEST_ENGINE_RECORD"


@ENGINES.register("recorded")
class RecordedEngine(TransformersEngine):
    """Lines `asked SEED` and `gave SEED`."""

    def generate(self, requests: Requests) -> Iterator[Ended]:
        seeds: list[int] = []
        with open(os.environ[RECORD], "a", buffering=1) as file:

            def noted() -> Requests:
                for request in requests:
                    if request is not None:
                        seeds.append(request.seed)
                        file.write(f"asked {request.seed}\n")
                    yield request

            for ended in super().generate(noted()):
                yield ended
                # By now the caller has them.
                file.writelines(f"gave {seeds[number]}\n" for number, _ in ended)
