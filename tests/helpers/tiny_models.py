"""Tiny models with random weights, and packs of random documents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.curation.packing import PACKS
from dasd_megatron.training.train_step_config import TrackingConfig, TrainConfig

VOCABULARY = 131  # prime: no tensor-parallel size divides it
CONTEXT = 96


FAMILIES = ("qwen3", "qwen3_moe", "qwen2", "llama", "gpt_oss")
# What each family has beyond the common fields.
EXTRAS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 32},  # != hidden / heads
    "qwen3_moe": {
        "head_dim": 32,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 40,
        "norm_topk_prob": True,
        "router_aux_loss_coef": 0.01,
    },
    "qwen2": {},
    "llama": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    },
    "gpt_oss": {
        "num_attention_heads": 6,
        "head_dim": 20,
        "intermediate_size": 36,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 7,  # shorter than most documents, in every second layer
        "swiglu_limit": 0.5,  # reached by weights like these
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 5000.0,
            "factor": 8.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 64,
        },
        "router_aux_loss_coef": 0.01,
    },
}


# No multiple of the data-parallel ranks of any test.
HELD_OUT_PACKS = 3


def tiny_model(folder: Path, family: str = "qwen3", tied: bool = False, **changes: Any) -> Path:
    """A model folder whose awkward shapes (odd vocabulary, head_dim) would show a wrong conversion."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_theta": 5000.0,
        "tie_word_embeddings": tied,
        **EXTRAS[family],
        **changes,
    }
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **fields))
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=1.0 if name.endswith("sinks") else 0.1)
    model.save_pretrained(folder)
    return folder


def random_packs(folder: Path, count: int, seed: int = 0, context: int = CONTEXT) -> Path:
    """A finished artifact of packs, some of them held out. Documents differ so much in length that a mean of means would show."""
    random = np.random.default_rng(seed)
    share = {length: share for length, share in {3: 0.4, 5: 0.3, 12: 0.2, 40: 0.1}.items() if length <= context // 2}
    rows = []
    for _ in range(count + HELD_OUT_PACKS):
        lengths: list[int] = []
        while sum(lengths) < context - 20:
            lengths.append(int(random.choice(list(share), p=np.array(list(share.values())) / sum(share.values()))))
        lengths = lengths if sum(lengths) <= context else lengths[:-1]
        rows.append(
            {
                "input_ids": random.integers(0, VOCABULARY, sum(lengths)),
                "loss_mask": random.random(sum(lengths)) < 0.7,
                "document_lengths": lengths,
                "uuids": [f"d{n}" for n in range(len(lengths))],
            }
        )
    writer = ArtifactWriter(folder, {})
    writer.write_shard("held_out", 0, pa.Table.from_pylist(rows[count:], PACKS))
    writer.write_shard("packs", 0, pa.Table.from_pylist(rows[:count], PACKS))
    writer.finish(context_length=context)
    return folder


def training_context(
    path: Path,
    model: Path,
    start: Path,
    packs: Path,
    output: Path,
    parallel: ParallelConfig,
    save_every: int = 1000,
    memory: dict[str, Any] | None = None,
    logging: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A file that `watched_ranks` runs: the context of a training step."""
    settings = {"steps": 20, "global_batch": 4, "learning_rate": 1e-3, "min_learning_rate": 1e-4, "precision": "fp32"}
    config = TrainConfig(
        training=TrainingConfig(**{**settings, "save_every": save_every, **changes}),
        isolate_documents=True,
        seed=3,
        parallel=parallel,
        memory=MemoryConfig(**(memory or {})),
        tracking=TrackingConfig(**(logging or {})),
    )
    content = {
        "name": "train",
        "config": config.model_dump(mode="json"),
        "inputs": {"model": str(model), "start": str(start), "packs": str(packs)},
        "output": str(output),
    }
    path.write_text(json.dumps(content))
    return path
