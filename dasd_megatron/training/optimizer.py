"""Megatron's distributed optimizer around AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.module import Float16Module

from dasd_megatron.training import reference_adam
from dasd_megatron.training.platform import optimizer_checks


def wrap_model(model: GPTModel) -> DistributedDataParallel:
    """The model with gradient buffers, reduced over data-parallel ranks in fp32."""
    config = model.config
    wrapped = Float16Module(config, model) if config.bf16 else model
    ddp = DistributedDataParallel(
        config,
        DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
        wrapped,
    )
    config.finalize_model_grads_func = finalize_model_grads
    return ddp


def build_optimizer(model: DistributedDataParallel, training: Mapping[str, Any]) -> MegatronOptimizer:
    """AdamW with fp32 master weights and state, sharded over data-parallel ranks."""
    if not torch.cuda.is_available():
        reference_adam.install()
    bf16 = training["precision"] == "bf16"
    config = OptimizerConfig(
        optimizer="adam",
        lr=training["learning_rate"],
        min_lr=training["min_learning_rate"],
        weight_decay=training["weight_decay"],
        adam_beta1=training["adam_beta1"],
        adam_beta2=training["adam_beta2"],
        adam_eps=training["adam_eps"],
        clip_grad=training["clip_grad"],
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=True,
    )
    with optimizer_checks():
        optimizer = get_megatron_optimizer(config, [model])
    model.config.grad_scale_func = optimizer.scale_loss
    return optimizer


def set_rates(optimizer: MegatronOptimizer, learning_rate: float, weight_decay: float) -> None:
    """Rates of the coming update; norms and biases are not decayed (Megatron's `wd_mult`)."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_mult", 1.0)
        group["weight_decay"] = weight_decay * group.get("wd_mult", 1.0)
