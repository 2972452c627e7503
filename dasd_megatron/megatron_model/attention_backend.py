"""Which of Transformer Engine's attentions a stage runs on a GPU.

It is chosen by `training.attention`, refused where it would be the slow one, and said in the log.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from dasd_megatron.utils.errors import UserError

# Without a fused kernel a document's scores are in memory as a whole: at 32K tokens 137 GB for 32 heads in float32.
UNFUSED_TOKENS = 4096
# By which Megatron tells Transformer Engine; it takes no other value from outside.
VARIABLES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


def check_attention_variables() -> None:
    """Raises UserError where the environment chooses, which Megatron would fail at."""
    given = [name for name in VARIABLES if name in os.environ]
    if torch.cuda.is_available() and given:
        raise UserError(f"{', '.join(given)}: set in the environment; unset it, and choose with training.attention")


def refuse_unfused_attention(context_length: int) -> None:
    """From here on packs of more than UNFUSED_TOKENS tokens fail rather than use it. Called when the model is built."""
    if context_length > UNFUSED_TOKENS:
        os.environ["NVTE_UNFUSED_ATTN"] = "0"


@contextlib.contextmanager
def fused_attention_or_error(attention: str) -> Iterator[None]:
    """Raises UserError where Transformer Engine has no attention for what it is asked for."""
    try:
        yield
    except ValueError as error:
        if "No dot product attention backend" not in str(error):
            raise
        raise UserError(
            f"training.attention={attention}: Transformer Engine has no fused attention for this model, precision and layout on "
            "this GPU; set another (auto, cudnn, flash), or see why with NVTE_DEBUG=1 NVTE_DEBUG_LEVEL=2"
        ) from error


def attention_in_use() -> str:
    """The attention that ran last, in words; Transformer Engine's choice is known once it has."""
    from transformer_engine.pytorch.attention.dot_product_attention.dot_product_attention import _attention_backends

    if _attention_backends["use_flash_attention"]:
        return f"FlashAttention {_attention_backends['flash_attention_backend']}"
    if _attention_backends["use_fused_attention"]:
        return f"cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    return "unfused"
