"""The engine `megatron`: scores with the model that is trained, Megatron's, on packed documents. It doesn't sample."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.config.training import ParallelConfig, TrainingConfig
from dasd_megatron.models.hf_config import max_positions, read_config, shape_of
from dasd_megatron.models.parallel_layout import layout_problem, nearest_layouts
from dasd_megatron.sampling.engines.engine import TOP, Ended, Requests, TokenScores
from dasd_megatron.sampling.engines.sequence_packs import CollectedScores, packed_by_length
from dasd_megatron.utils.child_process import TORCHRUN_VARIABLES
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.piped_process import PipedProcess
from dasd_megatron.utils.registry import loaded_plugins

RANK = "dasd_megatron.sampling.engines.megatron_rank"
# Where the weights or a long document need more memory than there is.
OUT_OF_MEMORY = (
    "raise engine.scorer.tensor_parallel or engine.scorer.megatron.context, or lower engine.scorer.megatron.pack_tokens"
)
# The layout is checked without a batch, and without a limit on lengths.
_NO_TRAINING, _ANY_LENGTH = TrainingConfig(global_batch=1), 1 << 20


class MegatronEngine:
    """See Engine; scores alone. Each rank of the layout is a child process, with a GPU of its own where there are any.

    Raises UserError where the model or the layout isn't possible, and where a rank fails.
    """

    def __init__(self, model: Path, config: EngineConfig) -> None:
        parallel = scorer_layout(config)
        check_scorer(model, config)
        self._pack_tokens: int = config.megatron.pack_tokens
        self.max_length: int = config.max_length or max_positions(model) or sys.maxsize
        self._ranks = _RankProcesses(model, config, parallel)

    def generate(self, requests: Requests) -> Iterator[Ended]:
        """Raises UserError."""
        raise UserError(
            "engine.name: the engine megatron only scores; set it as engine.scorer.name, and another engine for what is sampled"
        )

    def tokens_in_flight(self) -> int:
        return 0

    def score(self, sequences: Sequence[Sequence[int]], brier: bool = False) -> list[TokenScores]:
        collected, packs = CollectedScores(sequences, brier), packed_by_length(sequences, self._pack_tokens)
        # All at once: a rank begins with a pack when it is done with the one before, whatever this process does.
        self._ranks.send((packs, TOP if brier else 0))
        for pack in packs:
            collected.add(pack, [piece for piece in self._ranks.receive() if piece is not None])
        return collected.all()


def scorer_layout(config: EngineConfig) -> ParallelConfig:
    """The ranks of one engine."""
    layout = config.megatron
    return ParallelConfig(
        tensor=config.tensor_parallel, context=layout.context, pipeline=layout.pipeline, expert=layout.expert
    )


def check_scorer(model: Path, config: EngineConfig) -> None:
    """Raises UserError for a layout that the model can't be split into, with layouts that work."""
    parallel, shape = scorer_layout(config), shape_of(read_config(model), model)
    problem = layout_problem(shape, parallel, _NO_TRAINING, _ANY_LENGTH)
    if problem is not None:
        layouts = nearest_layouts(shape, parallel, _NO_TRAINING, _ANY_LENGTH)
        nearest = " | ".join(dict.fromkeys(map(_settings, layouts)))
        raise UserError(
            f"engine.scorer.tensor_parallel, engine.scorer.megatron: {problem} ({model}); layouts that work: {nearest}"
        )


def _settings(layout: ParallelConfig) -> str:
    """A layout as the settings of an engine say it; more data parallelism is more replicas."""
    sizes = {
        "tensor_parallel": layout.tensor,
        "megatron.context": layout.context,
        "megatron.pipeline": layout.pipeline,
        "megatron.expert": layout.expert,
    }
    named = [f"engine.scorer.{name}={size}" for name, size in sizes.items() if size > 1]
    return ", ".join(named) or "one GPU"


class _RankProcesses:
    """The ranks; all of them end where one of them fails, for the others would wait for it."""

    def __init__(self, model: Path, config: EngineConfig, parallel: ParallelConfig) -> None:
        self._ranks: list[PipedProcess] = []
        count = parallel.world_size
        variables: list[dict[str, str]] = [{}]
        if count > 1:
            self._store, variables = _meeting_point(count)
        for rank, of_rank in enumerate(variables):
            name = f"{model}: rank {rank} of the scorer" if count > 1 else f"{model}: the scorer's process"
            self._ranks.append(PipedProcess(RANK, name, OUT_OF_MEMORY, of_rank, TORCHRUN_VARIABLES))
        self.send((model, config, parallel, loaded_plugins()))
        self.receive()  # when the weights are loaded

    def send(self, message: object) -> None:
        """To every rank."""
        for rank in self._ranks:
            rank.send(message)

    def receive(self) -> list[Any]:
        """The next answer of each rank."""
        answers: list[Any] = []
        waiting = {rank.fileno(): rank for rank in self._ranks}
        while waiting:
            for readable in wait(list(waiting)):
                assert isinstance(readable, int)
                try:
                    answers.append(waiting.pop(readable).receive())
                except UserError:
                    for rank in self._ranks:
                        rank.kill()
                    raise
        return answers


def _meeting_point(ranks: int) -> tuple[object, list[dict[str, str]]]:
    """Where ranks find one another, for as long as the first of the two exists; and what to tell each of them."""
    import torch

    store = torch._C._distributed_c10d.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is this process's, as it is torchrun's elsewhere
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
    }
    return store, [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
