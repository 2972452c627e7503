"""Megatron's distributed optimizer around AdamW."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.module import Float16Module

from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.cpu_backend.adam import use_reference_adam
from dasd_megatron.cpu_backend.megatron_without_cuda import optimizer_checks


def wrap_model(chunks: Sequence[GPTModel], distributed: bool) -> list[DistributedDataParallel]:
    """The model chunks with gradient buffers, reduced over data-parallel ranks in fp32.

    `distributed`: for the distributed optimizer, which needs each rank's share of the gradients only.
    """
    config = chunks[0].config
    settings = DistributedDataParallelConfig(use_distributed_optimizer=distributed, grad_reduce_in_fp32=True)
    config.finalize_model_grads_func = finalize_model_grads
    wrapped = [
        DistributedDataParallel(
            config,
            settings,
            Float16Module(config, chunk) if config.bf16 else chunk,
            disable_bucketing=number > 0,  # as Megatron does: only the first chunk's reduction could overlap
        )
        for number, chunk in enumerate(chunks)
    ]
    for chunk in chunks:
        _add_gradients_in_place(chunk)
    for ddp in wrapped:
        _exchange_with_others_alone(ddp)
    return wrapped


def _add_gradients_in_place(chunk: GPTModel) -> None:
    """Lets Transformer Engine's layers add weights' gradients to the float32 buffers as they are made, not rounded before.

    Megatron's own setting for that (gradient_accumulation_fusion) needs apex, for layers that aren't used here.
    """
    for module in chunk.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):
            module.fuse_wgrad_accumulation = True


def _exchange_with_others_alone(ddp: DistributedDataParallel) -> None:
    """A rank that shares its parameters with none has nothing to reduce and to gather; gloo would copy all of it."""
    for group, buckets in (
        (parallel_state.get_data_parallel_group(with_context_parallel=True), ddp.bucket_groups),
        (parallel_state.get_expert_data_parallel_group(), ddp.expert_parallel_bucket_groups),
    ):
        if group.size() == 1:
            for bucket in buckets:
                bucket.start_grad_sync = bucket.start_param_sync = lambda *_, **__: None


def build_optimizer(
    chunks: Sequence[DistributedDataParallel], training: TrainingConfig, parallel: ParallelConfig, memory: MemoryConfig
) -> MegatronOptimizer:
    """AdamW with fp32 master weights and state, sharded over data-parallel ranks if `parallel` says so."""
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        use_reference_adam()
    bf16 = training.precision == "bf16"
    config = OptimizerConfig(
        optimizer="adam",
        lr=training.learning_rate,
        min_lr=training.min_learning_rate,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_eps=training.adam_eps,
        clip_grad=training.clip_grad,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=parallel.distributed_optimizer,
        # On a CPU the state is in host memory anyway.
        optimizer_cpu_offload=on_gpu and memory.offload_optimizer > 0,
        optimizer_offload_fraction=memory.offload_optimizer,
        use_precision_aware_optimizer=on_gpu and memory.offload_optimizer > 0,
    )
    with optimizer_checks():
        optimizer = get_megatron_optimizer(config, list(chunks), use_gloo_process_groups=False)
    if not bf16 and parallel.distributed_optimizer:
        for part in getattr(optimizer, "chained_optimizers", [optimizer]):
            part._copy_main_params_to_model_params = lambda: None  # they are the same memory
    chunks[0].config.grad_scale_func = optimizer.scale_loss
    return optimizer


def set_lr(optimizer: MegatronOptimizer, lr: float, weight_decay: float) -> None:
    """Learning rate and weight decay of the coming update; norms and biases are not decayed (Megatron's `wd_mult`)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_mult", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)
