"""Impossible layouts are refused before anything starts, with ones that work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.models.hf_config import shape_of
from dasd_megatron.models.parallel_layout import check_layout, nearest_layouts
from dasd_megatron.utils.errors import UserError

DENSE = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_hidden_layers": 12,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "head_dim": 64,
    "vocab_size": 1000,
}
SINKS = {
    **DENSE,
    "architectures": ["GptOssForCausalLM"],
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
}
EXPERTS = {**DENSE, "num_experts": 6, "moe_intermediate_size": 96, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    ("config", "parallel", "training", "message"),
    [
        (DENSE, {"tensor": 3}, {}, "tensor=3 doesn't divide the 8 attention heads"),
        (DENSE, {"tensor": 8}, {}, "tensor=8 doesn't divide the 4 key-value heads"),
        (
            {**DENSE, "intermediate_size": 1022},
            {"tensor": 4},
            {},
            "tensor=4 doesn't divide the 1022 columns of the feed-forward layer",
        ),
        (DENSE, {"pipeline": 5}, {}, "pipeline=5 doesn't divide the 12 layers"),
        (
            DENSE,
            {"pipeline": 4, "virtual_pipeline": 2},
            {},
            "pipeline=4 x virtual_pipeline=2 doesn't divide the 12 layers",
        ),
        (DENSE, {"virtual_pipeline": 2}, {}, "virtual_pipeline=2 needs pipeline of 2 or more"),
        (DENSE, {"data": 3}, {}, "data=3 doesn't divide training.global_batch=64"),
        (
            DENSE,
            {"pipeline": 3, "virtual_pipeline": 2, "data": 2},
            {},
            "virtual_pipeline=2 needs the 32 micro-batches of a data rank (training.global_batch=64 / data=2) to divide by "
            "pipeline=3",
        ),
        (DENSE, {"expert": 2, "data": 2}, {}, "expert=2 needs a mixture of experts, and this model has none"),
        (DENSE, {"context": 513}, {}, "context=513 splits packs of 1024 tokens into less than two chunks a rank"),
        (
            SINKS,
            {"context": 4, "tensor": 2},
            {},
            "context=4 x tensor=2 doesn't divide the 4 key-value heads, which attention with sinks needs",
        ),
        (EXPERTS, {"expert": 4, "data": 4}, {}, "expert=4 doesn't divide the 6 experts"),
        (
            EXPERTS,
            {"expert": 2, "pipeline": 2},
            {},
            "expert=2 doesn't divide the 1 ranks of a pipeline stage (tensor x context x data)",
        ),
        (EXPERTS, {"tensor": 2, "sequence": False}, {}, "tensor=2 with a mixture of experts needs sequence: true"),
        (
            {**DENSE, "hidden_size": 520},
            {},
            {"fp8": "delayed"},
            "training.fp8=delayed needs the hidden size 520 to divide by 16",
        ),
        (
            {**DENSE, "intermediate_size": 1056},
            {"tensor": 4},
            {"fp8": "mxfp8"},
            "training.fp8=mxfp8 needs the feed-forward size 1056 / tensor=4 to divide by 32",
        ),
        (EXPERTS, {}, {"fp8": "blockwise"}, "training.fp8=blockwise needs the feed-forward size 96 to divide by 128"),
    ],
)
def test_refusals(
    config: dict[str, Any], parallel: dict[str, Any], training: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refusal:
        check_layout(config, tmp_path, ParallelConfig(**parallel), TrainingConfig(**training), MemoryConfig(), 1024)
    assert message in str(refusal.value)
    assert "layouts that work: " in str(refusal.value) or "choose another, or null" in str(refusal.value)


def test_a_refusal_names_the_nearest_layouts_of_as_many_ranks(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="layouts that work: tensor=4, data=2"):
        check_layout(DENSE, tmp_path, ParallelConfig(tensor=8), TrainingConfig(), MemoryConfig(), 1024)


SIZES = st.sampled_from([1, 2, 3, 4])


@settings(max_examples=30)
@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]), st.booleans())
def test_suggested_layouts_work(
    tensor: int, pipeline: int, context: int, data: int, virtual: int, expert: int, moe: bool
) -> None:
    config, training = EXPERTS if moe else DENSE, TrainingConfig(global_batch=48)
    parallel = ParallelConfig(
        tensor=tensor, pipeline=pipeline, context=context, data=data, virtual_pipeline=virtual, expert=expert
    )
    found = nearest_layouts(shape_of(config, Path("model")), parallel, training, 1024)
    assert len({layout.world_size for layout in found}) == 1
    for layout in found:
        assert layout.world_size <= parallel.world_size
        check_layout(config, Path("model"), layout, training, MemoryConfig(), 1024)
    try:
        check_layout(config, Path("model"), parallel, training, MemoryConfig(), 1024)
    except UserError:
        return
    assert found[0].world_size == parallel.world_size


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fp8": "delayed", "precision": "fp32"}, "fp8=delayed needs precision: bf16, not fp32"),
        ({"fp8": "delayed", "fp8_bf16_layers": 1}, "fp8_bf16_layers=1 can't be had with fp8=delayed"),
        ({"fp8_bf16_layers": 1}, "fp8_bf16_layers=1 can't be had with fp8=null"),
    ],
)
def test_impossible_precision(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**fields)


@pytest.mark.parametrize(
    ("parallel", "training", "memory", "message"),
    [
        ({}, {"moe_aux_loss_coeff": 0.01}, {}, "moe_aux_loss_coeff=0.01 needs a mixture of experts"),
        (
            {},
            {"fp8": "tensorwise", "fp8_bf16_layers": 6},
            {},
            "fp8_bf16_layers=6 at each end leaves none of 12 layers in FP8",
        ),
        (
            {"pipeline": 2, "virtual_pipeline": 2},
            {},
            {"recompute": "full", "recompute_layers": 4},
            "memory.recompute_layers=4, but a model chunk has 3 layers",
        ),
        (
            {"distributed_optimizer": False},
            {},
            {"offload_optimizer": 0.5},
            "memory.offload_optimizer=0.5 needs parallel.distributed_optimizer: true",
        ),
    ],
)
def test_settings_that_go_with_no_such_model(
    parallel: dict[str, Any], training: dict[str, Any], memory: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refusal:
        check_layout(
            DENSE, tmp_path, ParallelConfig(**parallel), TrainingConfig(**training), MemoryConfig(**memory), 1024
        )
    assert message in str(refusal.value)


def test_absurd_sizes_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tensor=1000000000 doesn't divide the 8 attention heads.*layouts that work: "):
        check_layout(DENSE, tmp_path, ParallelConfig(tensor=10**9), TrainingConfig(), MemoryConfig(), 65_536)
