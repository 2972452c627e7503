"""Builds the ranks of a layout without memory and without the other ranks: what can't be built shows before it is submitted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel

from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
from dasd_megatron.megatron_model.process_groups import model_parallel
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.models.pack_padding import alignment
from dasd_megatron.models.parameter_count import parameter_count, stage_parameters


def build_ranks(model: Path, parallel: ParallelConfig, training: TrainingConfig, memory: MemoryConfig) -> None:
    """Prints what the first rank of each pipeline stage holds. Raises UserError for what the model can't be built from."""
    hf, start = HFModel(model), time.monotonic()
    # FP8 and recomputation change no shape, and need libraries that a machine without a GPU lacks.
    options = ModelOptions(ModelOptions.of(training, memory).dtype, moe_aux_loss_coeff=training.moe_aux_loss_coeff)
    align = alignment(parallel, training.fp8)
    print(
        f"{parallel} ({parallel.world_size} ranks), {hf.family.architecture} of {parameter_count(hf.shape):,} parameters"
    )
    print(f"documents are padded to multiples of {align.document}, packs to multiples of {align.pack} tokens")
    for stage in range(parallel.pipeline):
        rank = stage * parallel.world_size // parallel.pipeline
        with _alone_as(rank, parallel):
            chunks = build_model(hf, parallel, options, max_length=1)
            found = sum(parameter.numel() for chunk in chunks for parameter in chunk.parameters())
            assert found == sum(stage_parameters(hf.shape, parallel, stage)), "the estimate counts otherwise"
            print(f"rank {rank}, pipeline stage {stage}: {found:,} parameters; {_parts(chunks)}")
    print(f"every rank can be built ({time.monotonic() - start:.1f} s); nothing was run")


def _parts(chunks: list[GPTModel]) -> str:
    """What the model chunks of a rank hold, in words."""
    parts = []
    for chunk in chunks:
        layers = [layer.layer_number for layer in chunk.decoder.layers]
        parts.append(
            ("embedding, " if chunk.pre_process else "")
            + f"layers {layers[0]}-{layers[-1]}"
            + (", head" if chunk.post_process else "")
        )
    return " | ".join(parts)


@contextlib.contextmanager
def _alone_as(rank: int, parallel: ParallelConfig) -> Iterator[None]:
    """This process as `rank` of the layout: communication does nothing, and tensors have shapes but no memory."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=parallel.world_size)
    try:
        with model_parallel(parallel, seed=0), torch.device("meta"):
            yield
    finally:
        dist.destroy_process_group()
