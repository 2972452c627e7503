"""Folders of published models without their weights: what of config.json and the index says their sizes, and real tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import fetch_tokenizer

# Without the version, transformers takes any tokenizer of a large vocabulary for a broken one of Mistral's, and warns.
QWEN3 = {
    "transformers_version": "4.51.0",
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151_936,
    "head_dim": 128,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt-oss-120b": {
        "model_type": "gpt_oss",
        "transformers_version": "4.55.0",
        "architectures": ["GptOssForCausalLM"],
        "num_hidden_layers": 36,
        "hidden_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "intermediate_size": 2880,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 18,
        "vocab_size": 201_088,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "quantization_config": {"quant_method": "mxfp4"},
        "max_position_embeddings": 131_072,
    },
    "Qwen3-4B-Instruct-2507": {
        **QWEN3,
        "num_hidden_layers": 36,
        "hidden_size": 2560,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 9728,
        "tie_word_embeddings": True,
        "max_position_embeddings": 262_144,
    },
    "Qwen3-30B-A3B-Instruct-2507": {
        **QWEN3,
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_hidden_layers": 48,
        "hidden_size": 2048,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "router_aux_loss_coef": 0.001,
        "tie_word_embeddings": False,
        "max_position_embeddings": 262_144,
    },
}
# Bytes of the published weights: gpt-oss in MXFP4, the others in bf16.
WEIGHTS = {"gpt-oss-120b": 65_248_815_744}


def published_model(folder: Path, name: str) -> Path:
    """A folder with the sizes of a published model, and its tokenizer."""
    made = folder / name
    shutil.copytree(fetch_tokenizer("gptoss" if name.startswith("gpt-oss") else "qwen3"), made)
    (made / "config.json").write_text(json.dumps(CONFIGS[name]))
    if name in WEIGHTS:
        index = {"metadata": {"total_size": WEIGHTS[name]}, "weight_map": {}}
        (made / "model.safetensors.index.json").write_text(json.dumps(index))
    return made
