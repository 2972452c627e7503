"""The model families, by the name that config.json has under `architectures`.

Adding one: a module with a ModelFamily, and a line here (or a plugin that registers it).
"""

from __future__ import annotations

from dasd_megatron.models.parameter_mapping import ModelFamily
from dasd_megatron.utils.registry import Registry

FAMILIES: Registry[ModelFamily] = Registry(
    "model family",
    {
        "Qwen3ForCausalLM": "dasd_megatron.models.families.qwen3:QWEN3",
        "Qwen3MoeForCausalLM": "dasd_megatron.models.families.qwen3_moe:QWEN3_MOE",
        "Qwen2ForCausalLM": "dasd_megatron.models.families.qwen2:QWEN2",
        "LlamaForCausalLM": "dasd_megatron.models.families.llama:LLAMA",
        "GptOssForCausalLM": "dasd_megatron.models.families.gpt_oss:GPT_OSS",
    },
)
