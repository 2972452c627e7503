"""Qwen2 and Qwen2.5: their Hugging Face config and tensors in Megatron's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dasd_megatron.models.families.decoder import (
    ATTENTION_TENSORS,
    EMBEDDING,
    FIXED,
    HEAD,
    IGNORED,
    MLP_TENSORS,
    QKV_BIAS,
    USED,
)
from dasd_megatron.models.parameter_mapping import ModelFamily


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"add_qkv_bias": True}


QWEN2 = ModelFamily(
    architecture="Qwen2ForCausalLM",
    used=USED,
    fixed={name: values for name, values in FIXED.items() if name != "attention_bias"},  # no such field: always biased
    ignored=IGNORED,
    arguments=arguments,
    tensors=(EMBEDDING, *ATTENTION_TENSORS, QKV_BIAS, *MLP_TENSORS, *HEAD),
    traits={"qkv_bias": True},
)
