"""Parameters, FLOPs and memory against what transformers counts, and how memory follows the layout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.config.gpu_specs import GPU_SPECS, GpuName
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.models.flops import fp8_share, hours, training_flops
from dasd_megatron.models.hf_config import shape_of
from dasd_megatron.models.parameter_count import parameter_count, stage_parameters
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.planning.memory_estimate import rank_memory
from tests.helpers.tiny_models import FAMILIES, tiny_model

QWEN3_4B = ModelShape(36, 2560, 32, 8, 128, 9728, 151_936, tied=True, qk_norm=True)
QWEN3_30B_A3B = ModelShape(48, 2048, 32, 4, 128, 768, 151_936, experts=128, top_k=8, qk_norm=True)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_transformers(family: str, tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path, family, tied=tied)
    shape = shape_of(json.loads((folder / "config.json").read_text()), folder)
    model = AutoModelForCausalLM.from_pretrained(str(folder))
    assert parameter_count(shape) == sum(parameter.numel() for parameter in model.parameters())


def test_known_models_have_their_published_sizes() -> None:
    assert parameter_count(QWEN3_4B) == pytest.approx(4.02e9, rel=0.01)
    assert parameter_count(QWEN3_30B_A3B) == pytest.approx(30.5e9, rel=0.01)


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
def test_flops_are_what_torch_counts(family: str, tmp_path: Path) -> None:
    """Forward; torch counts the whole square of attention, of which the causal half is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path, family)
    shape = shape_of(json.loads((folder / "config.json").read_text()), folder)
    model = AutoModelForCausalLM.from_pretrained(str(folder), attn_implementation="eager")
    length = 64
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(1, length, dtype=torch.long))
    attention = 2 * shape.layers * shape.query_columns * length**2
    assert counter.get_total_flops() == training_flops(shape, [length]) / 3 + attention


def test_flops_go_by_the_squares_of_documents_not_of_the_pack() -> None:
    whole, parts = training_flops(QWEN3_4B, [32_768]), training_flops(QWEN3_4B, [1024] * 32)
    by_square = 3 * 2 * 36 * 32 * 128
    assert whole - parts == pytest.approx(by_square * (32_768**2 - 32 * 1024**2))


LAYOUTS = st.builds(
    ParallelConfig,
    tensor=st.sampled_from([1, 2, 4]),
    pipeline=st.sampled_from([1, 2, 4]),
    context=st.sampled_from([1, 2]),
    data=st.sampled_from([1, 2, 8]),
)


@given(LAYOUTS)
def test_ranks_hold_the_whole_model(parallel: ParallelConfig) -> None:
    shape = QWEN3_30B_A3B
    stages = [sum(stage_parameters(shape, parallel, stage)) for stage in range(parallel.pipeline)]
    vocabulary = 2 * shape.vocabulary * shape.hidden  # embedding and head
    shared = shape.layers * (2 * shape.hidden + 2 * shape.head_dim + shape.experts * shape.hidden) + shape.hidden
    experts = shape.layers * shape.experts * 3 * shape.hidden * shape.ffn_hidden_size  # on every tensor rank: expert=1
    split = parameter_count(shape) - shared - experts - vocabulary
    assert sum(stages) == split // parallel.tensor + vocabulary // parallel.tensor + shared + experts


def memory_of(parallel: dict[str, Any], memory: dict[str, Any] | None = None, **training: Any) -> Any:
    return rank_memory(
        QWEN3_4B, ParallelConfig(**parallel), TrainingConfig(**training), MemoryConfig(**(memory or {})), 32_768, "gpu"
    )


def test_memory_follows_layout_and_settings() -> None:
    one = memory_of({})
    assert one.weights == 2 * one.parameters
    assert one.gradients == 4 * one.parameters
    assert one.optimizer == 12 * one.parameters
    assert memory_of({"data": 8}).optimizer == one.optimizer / 8
    assert memory_of({"data": 8, "distributed_optimizer": False}).optimizer == one.optimizer
    assert memory_of({"context": 2}).activations == pytest.approx(one.activations / 2)
    assert memory_of({"tensor": 2}).activations == pytest.approx(one.activations / 2, rel=0.01)
    assert memory_of({"tensor": 2, "sequence": False}).activations > memory_of({"tensor": 2}).activations
    assert memory_of({}, {"recompute": "full"}).activations < one.activations / 8
    full = [memory_of({}, {"recompute": "full", "recompute_layers": n}).activations for n in (12, 24, 36)]
    assert sorted(full, reverse=True) == full
    assert full[-1] < memory_of({}, {"recompute": "selective"}).activations < one.activations
    assert memory_of({}, {"offload_optimizer": 0.5}).optimizer == one.optimizer / 2
    assert memory_of({}, precision="fp32").weights == 2 * one.weights


def test_fp8_copies_of_the_weights_are_counted() -> None:
    """A byte by rows and one by columns of each of the layers' matrices: 7.3 GB of Qwen3-4B; none in layers that stay in bf16."""
    one, fp8 = memory_of({}), memory_of({}, fp8="tensorwise")
    assert fp8.weights - one.weights == pytest.approx(7.27e9, rel=1e-3)
    assert memory_of({}, fp8="tensorwise", fp8_bf16_layers=9).weights - one.weights == pytest.approx(
        7.27e9 / 2, rel=1e-3
    )
    assert memory_of({"tensor": 2}, fp8="tensorwise").weights == pytest.approx(fp8.weights / 2, rel=1e-3)


def test_attention_and_the_head_are_not_in_fp8() -> None:
    """At 32K tokens they are most of the arithmetic: FP8 makes a step at most 1.26 times as fast, and not twice."""
    flops = training_flops(QWEN3_4B, [32_768])
    share = fp8_share(QWEN3_4B, 32_768, flops, TrainingConfig(fp8="tensorwise"))
    assert share == pytest.approx(0.410, abs=0.001)
    assert GPU_SPECS["h100"].peak(share) / GPU_SPECS["h100"].peak() == pytest.approx(1.258, abs=0.001)
    assert fp8_share(QWEN3_4B, 32_768, flops, TrainingConfig(fp8="tensorwise", fp8_bf16_layers=18)) == 0.0
    assert fp8_share(QWEN3_4B, 32_768, flops, TrainingConfig()) == 0.0
    short = training_flops(QWEN3_4B, [1024])
    assert fp8_share(QWEN3_4B, 1024, short, TrainingConfig(fp8="tensorwise")) > 0.85


def test_hours() -> None:
    assert set(get_args(GpuName)) == set(GPU_SPECS)
    assert hours(989e12 * 3600 * 8 * 0.5, 8, "h100", mfu=0.5) == pytest.approx(1.0)
    assert hours(1979e12 * 3600, 1, "h100", mfu=1.0, fp8_share=1.0) == pytest.approx(1.0)
    assert hours(312e12 * 3600, 1, "a100", mfu=1.0, fp8_share=1.0) == pytest.approx(1.0)  # has no FP8


def test_peak_memory_is_of_this_process_alone() -> None:
    """Not of the one that started it, which may hold much more."""
    held = bytearray(1 << 30)
    program = "from dasd_megatron.training.device_stats import peak_resident_bytes as peak; print(peak())"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert 0 < int(done.stdout) < len(held)
