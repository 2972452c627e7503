"""Process groups: torch's, and Megatron's parallel layout over them."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.utils.errors import UserError


@contextlib.contextmanager
def process_groups(parallel: ParallelConfig, seed: int) -> Iterator[None]:
    """Sets up and takes down the layout. Under torchrun its environment is used, else this process is the only rank.

    Raises UserError when the number of ranks isn't the layout's.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != parallel.world_size:
        raise UserError(
            f"parallel ({parallel}) needs {parallel.world_size} ranks, but {world_size} were started; start it with "
            f"`dasd launch`, or torchrun --nproc-per-node {parallel.world_size}"
        )
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count(), parallel)
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if world_size == 1 and "MASTER_ADDR" not in os.environ:
        dist.init_process_group(backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(backend)
    try:
        with model_parallel(parallel, seed):
            yield
    finally:
        dist.destroy_process_group()


def check_gpus(ranks: int, gpus: int, parallel: ParallelConfig) -> None:
    """Raises UserError when a machine has fewer GPUs than ranks that were started on it."""
    if ranks > gpus:
        raise UserError(
            f"parallel ({parallel}): {ranks} ranks were started on a machine with {gpus} GPUs; make it smaller, or use more "
            "machines"
        )


@contextlib.contextmanager
def model_parallel(parallel: ParallelConfig, seed: int) -> Iterator[None]:
    """Megatron's groups over torch's, and every random generator seeded."""
    from megatron.core import parallel_state, tensor_parallel

    try:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=parallel.tensor,
            pipeline_model_parallel_size=parallel.pipeline,
            virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
            context_parallel_size=parallel.context,
            expert_model_parallel_size=parallel.expert,
            expert_tensor_parallel_size=1,
            create_gloo_process_groups=False,  # over them Megatron gathers optimizer state, which isn't done here
        )
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        yield
    finally:
        parallel_state.destroy_model_parallel()
