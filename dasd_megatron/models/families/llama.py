"""Llama 3: its Hugging Face config and tensors in Megatron's terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dasd_megatron.models.families.decoder import ATTENTION_TENSORS, EMBEDDING, FIXED, HEAD, IGNORED, MLP_TENSORS, USED
from dasd_megatron.models.parameter_mapping import ModelFamily


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {}


LLAMA = ModelFamily(
    architecture="LlamaForCausalLM",
    used=USED,
    fixed={**FIXED, "mlp_bias": (False,), "is_llama_config": (True,), "rope_interleaved": (False,)},
    ignored=(*IGNORED, "pretraining_tp"),  # a way to compute, not what is computed
    arguments=arguments,
    tensors=(EMBEDDING, *ATTENTION_TENSORS, *MLP_TENSORS, *HEAD),
)
