"""Qwen2 and Qwen2.5: their Hugging Face config and tensors in Megatron's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion.decoder import (
    ATTENTION,
    ATTENTION_TENSORS,
    EMBEDDING,
    FIXED,
    HEAD,
    IGNORED,
    MEGATRON_ATTENTION,
    MLP_TENSORS,
    USED,
)
from conversion.mapping import QKV, Family


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """See Family."""
    return {"add_qkv_bias": True}


QKV_BIAS = QKV(
    MEGATRON_ATTENTION + "linear_qkv.bias",
    ATTENTION + "q_proj.bias",
    ATTENTION + "k_proj.bias",
    ATTENTION + "v_proj.bias",
    columns=(),
)

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    used=USED,
    fixed={name: values for name, values in FIXED.items() if name != "attention_bias"},  # no such field: always biased
    ignored=IGNORED,
    arguments=arguments,
    tensors=(EMBEDDING, *ATTENTION_TENSORS, QKV_BIAS, *MLP_TENSORS, *HEAD),
)
