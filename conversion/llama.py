"""Llama 3: its Hugging Face config and tensors in Megatron's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion.decoder import ATTENTION_TENSORS, EMBEDDING, FIXED, HEAD, IGNORED, MLP_TENSORS, USED
from conversion.mapping import Family


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """See Family."""
    return {}


LLAMA = Family(
    architecture="LlamaForCausalLM",
    used=USED,
    fixed={**FIXED, "mlp_bias": (False,), "is_llama_config": (True,), "rope_interleaved": (False,)},
    ignored=(*IGNORED, "pretraining_tp"),  # a way to compute, not what is computed
    arguments=arguments,
    tensors=(EMBEDDING, *ATTENTION_TENSORS, *MLP_TENSORS, *HEAD),
)
