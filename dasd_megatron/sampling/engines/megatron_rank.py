"""A rank of the engine `megatron`: python -m dasd_megatron.sampling.engines.megatron_rank FD"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.sampling.engines.megatron_engine import OUT_OF_MEMORY
from dasd_megatron.sampling.engines.sequence_packs import SequencePack
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.piped_process import parent_connection
from dasd_megatron.utils.registry import load_plugins

if TYPE_CHECKING:
    from dasd_megatron.megatron_model.scorer import Scorer

# Packs that go through a pipeline together, for each of its stages. A single stage takes one after the other: packs that go
# together are padded to the same length.
IN_PIPELINE = 4

# In float32 there is none.
NO_ATTENTION = "set engine.scorer.dtype=bfloat16 or engine.scorer.name=vllm"

Piece = tuple[NDArray[np.int64], NDArray[np.float32]]


def main() -> None:
    """Entry point."""
    connection = parent_connection()
    try:
        model, config, parallel, plugins = connection.recv()
        _serve(connection, model, config, parallel, plugins)
    except UserError as error:
        connection.send(error)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        connection.send(UserError(f"the scorer's GPU memory ran out ({reason}); {OUT_OF_MEMORY}"))
    except (EOFError, ConnectionError):  # the parent is done
        pass
    sys.stderr.flush()
    os._exit(0)  # without taking process groups down: other ranks may be gone already


def _serve(
    connection: Connection[Any, Any], model: Path, config: EngineConfig, parallel: ParallelConfig, plugins: list[str]
) -> None:
    """Loads, and scores until the connection ends."""
    if torch.cuda.is_available() and find_spec("transformer_engine") is None:
        raise UserError(
            "engine.scorer.name is megatron, which needs Transformer Engine on a GPU, and it isn't installed; install it with "
            "`pip install dasd-megatron[gpu]`, or set engine.scorer.name=vllm"
        )
    load_plugins(plugins, str(model))  # one may have registered the model's family
    from dasd_megatron.megatron_model.attention_backend import fused_attention_or_error
    from dasd_megatron.megatron_model.process_groups import process_groups
    from dasd_megatron.megatron_model.scorer import Scorer
    from dasd_megatron.models.hf_model import HFModel, dtype_named

    with process_groups(parallel, seed=0), fused_attention_or_error(NO_ATTENTION):
        scorer = Scorer(HFModel(model), parallel, dtype_named(config.dtype))
        connection.send("loaded")
        together = IN_PIPELINE * parallel.pipeline if parallel.pipeline > 1 else 1
        while True:
            packs, top = connection.recv()
            for piece in _pieces(scorer, packs, top, together):
                connection.send(piece)


def _pieces(scorer: Scorer, packs: Sequence[SequencePack], top: int, together: int) -> Iterator[Piece | None]:
    """Of each pack, what this rank has to say, if anything."""
    from dasd_megatron.megatron_model.micro_batch import Pack

    for start in range(0, len(packs), together):
        group = [
            Pack(pack.ids, np.ones(len(pack.ids), np.bool_), pack.lengths) for pack in packs[start : start + together]
        ]
        scored = scorer.score(group, top)
        yield from ((piece.tokens, piece.scores) for piece in scored) if scored else (None for _ in group)


if __name__ == "__main__":
    main()
