"""Qwen3 (dense): its Hugging Face config and tensors in Megatron's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion.decoder import ATTENTION_TENSORS, EMBEDDING, FIXED, HEAD, IGNORED, MLP_TENSORS, QK_NORMS, USED
from conversion.mapping import Family


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """See Family."""
    return {"qk_layernorm": True}


QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    used=USED,
    fixed=FIXED,
    ignored=IGNORED,
    arguments=arguments,
    tensors=(EMBEDDING, *ATTENTION_TENSORS, *QK_NORMS, *MLP_TENSORS, *HEAD),
    head_dim_given=True,
)
