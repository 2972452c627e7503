"""Whether this machine can compute in the precision that a recipe asks for."""

from __future__ import annotations

import torch

from dasd_megatron.errors import UserError
from dasd_megatron.recipe.schema import Training

# FP8 recipe -> least compute capability, and the generation that has it.
CAPABILITY = {
    "delayed": ((8, 9), "Ada or Hopper"),
    "tensorwise": ((8, 9), "Ada or Hopper"),
    "blockwise": ((9, 0), "Hopper"),
    "mxfp8": ((10, 0), "Blackwell"),
}


def check_precision(training: Training) -> None:
    """Raises UserError where `training.fp8` needs hardware or software that isn't here."""
    if training.fp8 is None:
        return
    if not torch.cuda.is_available():
        raise UserError(f"training.fp8={training.fp8} needs a GPU, and this machine has none; set training.fp8=null")
    needed, generation = CAPABILITY[training.fp8]
    found = torch.cuda.get_device_capability()
    if found < needed:
        raise UserError(
            f"training.fp8={training.fp8} needs a GPU of compute capability {needed[0]}.{needed[1]} ({generation}) or newer; "
            f"{torch.cuda.get_device_name()} has {found[0]}.{found[1]}"
        )
    try:
        import transformer_engine.pytorch  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"training.fp8={training.fp8} needs Transformer Engine, which can't be imported: {error}"
        ) from None
