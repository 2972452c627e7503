"""Random models and packs for benchmarks: Qwen3 of any size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
from dasd_megatron.megatron_model.micro_batch import Pack
from dasd_megatron.models.hf_model import HFModel


def qwen3(folder: Path, **fields: Any) -> HFModel:
    """A folder that holds a Qwen3 config, and no weights. `fields` go on top of those of a model of 5M parameters."""
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131_072,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
        **fields,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return HFModel(folder)


def random_model(hf: HFModel, options: ModelOptions, length: int, parallel: ParallelConfig | None = None) -> list[Any]:
    """The Megatron model with random weights, in one process by default."""
    chunks = build_model(hf, parallel or ParallelConfig(), options, length)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in chunks[0].named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.02)
    return chunks


def random_pack(lengths: list[int], vocabulary: int, seed: int = 0) -> Pack:
    """Random documents; every token is a target."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, sum(lengths)).astype(np.int32)
    return Pack(ids, np.ones(len(ids), np.bool_), lengths)
