"""Memory of the fused loss, and steps of 32K tokens."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks.fused_loss import measure
from benchmarks.models import qwen3, random_model, random_pack
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.planning.memory_estimate import rank_memory

TOKENS = 32_768


def test_fused_loss_is_lean(one_rank: None) -> None:
    """Qwen3-4B's head; logits in bf16 alone would take 9.3 GiB. The gradient of the head's rows is allocated before."""
    torch.cuda.reset_peak_memory_stats()
    found = measure(TOKENS, vocabulary=151_936, hidden=2560, eager=False)
    head = 151_936 * 2560 * 2 / 2**30  # what autograd hands over, in bf16
    assert found["extra_gib"] < 1.5 + head


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_step_of_32k_tokens(one_rank: None, tmp_path: Path, recompute: str) -> None:
    """Qwen3-0.6B's sizes; the loss is that of random guesses, and memory what the estimate says, within a quarter."""
    from dasd_megatron.megatron_model.build_model import ModelOptions
    from dasd_megatron.training.trainer import Trainer

    fields = {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    }
    hf = qwen3(tmp_path, **fields)
    training, memory = TrainingConfig(global_batch=1), MemoryConfig(recompute=recompute)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trainer = Trainer(
        random_model(hf, ModelOptions.of(training, memory), TOKENS), hf, ParallelConfig(), training, memory
    )
    for seed in range(2):
        result = trainer.step([random_pack([20_000, 12_000, 768], 151_936, seed)], 1e-5).read()
    assert result.loss == pytest.approx(math.log(151_936), rel=0.1)
    assert 0 < result.grad_norm < math.inf
    measured = torch.cuda.max_memory_allocated() - before
    estimated = rank_memory(hf.shape, ParallelConfig(), training, memory, TOKENS, "gpu").total
    assert estimated == pytest.approx(measured, rel=0.25)
