"""Whether this machine can compute in the precision that a recipe asks for."""

from __future__ import annotations

import importlib.util

import torch

from dasd_megatron.utils.errors import UserError

# FP8 recipe -> least compute capability, and the generation that has it.
CAPABILITY = {
    "delayed": ((8, 9), "Ada or Hopper"),
    "tensorwise": ((8, 9), "Ada or Hopper"),
    "blockwise": ((9, 0), "Hopper"),
    "mxfp8": ((10, 0), "Blackwell"),
}


def check_precision(fp8: str | None) -> None:
    """Raises UserError where `training.fp8` needs hardware or software that isn't here."""
    if fp8 is None:
        return
    found = torch.cuda.get_device_capability() if torch.cuda.is_available() else None
    problem = fp8_problem(fp8, found, importlib.util.find_spec("transformer_engine") is not None)
    if problem is not None:
        raise UserError(f"training.fp8={fp8} {problem}; set training.fp8=null to train in bf16")


def fp8_problem(fp8: str, capability: tuple[int, int] | None, transformer_engine: bool) -> str | None:
    """What an FP8 recipe lacks on a GPU of this compute capability (None: no GPU); None where it can be used."""
    if capability is None:
        return "needs a GPU, and this machine has none"
    needed, generation = CAPABILITY[fp8]
    if capability < needed:
        return (
            f"needs a GPU of compute capability {needed[0]}.{needed[1]} ({generation}) or newer, and this one's is "
            f"{capability[0]}.{capability[1]}"
        )
    return None if transformer_engine else "needs Transformer Engine, which isn't installed"
