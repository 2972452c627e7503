"""Which of Transformer Engine's attentions a stage runs on a GPU.

It is chosen by `training.attention`, refused where it would be the slow one, and said in the log.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from dasd_megatron.config.gpu_specs import UNFUSED_TOKENS
from dasd_megatron.utils.errors import UserError

# By which Megatron tells Transformer Engine; it takes no other value from outside.
VARIABLES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


def check_attention_variables() -> None:
    """Raises UserError where the environment chooses, which Megatron would fail at."""
    given = [name for name in VARIABLES if name in os.environ]
    if torch.cuda.is_available() and given:
        raise UserError(f"{', '.join(given)}: set in the environment; unset it, and choose with training.attention")


@contextlib.contextmanager
def without_unfused_attention(max_length: int) -> Iterator[None]:
    """While a model is built for packs of up to `max_length` tokens: from then on those of over UNFUSED_TOKENS fail rather than
    use the slow attention.

    Megatron fails at variables that it finds, and sets them: those of an earlier model go first, and ours comes last.
    """
    for name in VARIABLES:
        os.environ.pop(name, None)
    yield
    if max_length > UNFUSED_TOKENS:
        os.environ["NVTE_UNFUSED_ATTN"] = "0"


@contextlib.contextmanager
def fused_attention_or_error(remedy: str) -> Iterator[None]:
    """Raises UserError where Transformer Engine has no attention for what it is asked for."""
    try:
        yield
    except ValueError as error:
        if "No dot product attention backend" not in str(error):
            raise
        raise UserError(
            f"Transformer Engine has no fused attention for this model, precision and layout on this GPU; {remedy}, or see why "
            "with NVTE_DEBUG=1 NVTE_DEBUG_LEVEL=2"
        ) from error


def attention_in_use() -> str:
    """The attention that ran last, in words; Transformer Engine's choice is known once it has."""
    from transformer_engine.pytorch.attention.dot_product_attention.dot_product_attention import _attention_backends

    if _attention_backends["use_flash_attention"]:
        return f"FlashAttention {_attention_backends['flash_attention_backend']}"
    if _attention_backends["use_fused_attention"]:
        return f"cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    return "unfused"
