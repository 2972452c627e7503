"""Qwen3 (dense): its Hugging Face config and tensors in Megatron's terms."""

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
    QK_NORMS,
    USED,
)
from dasd_megatron.models.parameter_mapping import ModelFamily


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"qk_layernorm": True}


QWEN3 = ModelFamily(
    architecture="Qwen3ForCausalLM",
    used=USED,
    fixed=FIXED,
    ignored=IGNORED,
    arguments=arguments,
    tensors=(EMBEDDING, *ATTENTION_TENSORS, *QK_NORMS, *MLP_TENSORS, *HEAD),
    traits={"qk_norm": True},
    head_dim_given=True,
)
