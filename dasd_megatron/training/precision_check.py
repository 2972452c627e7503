"""Whether this machine can compute in the precision that a recipe asks for."""

from __future__ import annotations

import importlib.util

import torch

from dasd_megatron.config.gpu_specs import precision_problem
from dasd_megatron.config.training import TrainingConfig
from dasd_megatron.utils.errors import UserError


def check_precision(training: TrainingConfig, context_length: int) -> None:
    """Raises UserError where the precision needs hardware or software that isn't here."""
    if torch.cuda.is_available():
        installed = importlib.util.find_spec("transformer_engine") is not None
        problem = precision_problem(training, context_length, torch.cuda.get_device_capability(), installed)
        if problem is not None:
            raise UserError(problem)
    elif training.fp8 is not None:
        raise UserError(
            f"training.fp8={training.fp8} needs a GPU, and this machine has none; set training.fp8=null to train in bf16"
        )
