"""Whether this machine can compute in the precision that a recipe asks for."""

from __future__ import annotations

import importlib.util

import torch

from dasd_megatron.config.gpu_specs import fp8_problem
from dasd_megatron.utils.errors import UserError


def check_precision(fp8: str | None) -> None:
    """Raises UserError where `training.fp8` needs hardware or software that isn't here."""
    if fp8 is None:
        return
    found = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    problem = fp8_problem(fp8, found, importlib.util.find_spec("transformer_engine") is not None)
    if problem is not None:
        raise UserError(f"training.fp8={fp8} {problem}; set training.fp8=null to train in bf16")
