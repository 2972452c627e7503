"""Settings of a recipe that no number tells: what Megatron is asked for."""

from __future__ import annotations

import pytest
import torch

from dasd_megatron.config.training import MemoryConfig, ParallelConfig
from dasd_megatron.megatron_model.build_model import ModelOptions, transformer_config
from dasd_megatron.models.hf_model import HFModel
from tests.helpers.tiny_models import tiny_model


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> HFModel:
    return HFModel(tiny_model(tmp_path_factory.mktemp("dense")))


@pytest.mark.parametrize(("attention", "expected"), [("auto", "auto"), ("cudnn", "fused"), ("flash", "flash")])
def test_attention(dense: HFModel, attention: str, expected: str) -> None:
    config = transformer_config(dense, ParallelConfig(), ModelOptions(attention=attention))
    assert config.attention_backend.name == expected


def test_what_context_parallel_ranks_exchange(dense: HFModel) -> None:
    found = [
        transformer_config(dense, ParallelConfig.model_validate({"context": 2, **given}), ModelOptions()).cp_comm_type
        for given in ({}, {"context_comm": "a2a"})
    ]
    assert found == [None, "a2a"]  # None: a ring


def test_layers_that_stay_in_bf16(dense: HFModel) -> None:
    options = ModelOptions(torch.bfloat16, fp8="tensorwise", fp8_bf16_layers=1)
    config = transformer_config(dense, ParallelConfig(), options)
    assert config.first_last_layers_bf16
    assert (config.num_layers_at_start_in_bf16, config.num_layers_at_end_in_bf16) == (1, 1)
    assert not transformer_config(
        dense, ParallelConfig(), ModelOptions(torch.bfloat16, fp8="tensorwise")
    ).first_last_layers_bf16


def test_recomputation(dense: HFModel) -> None:
    found = []
    for memory in ({}, {"recompute": "selective"}, {"recompute": "full"}, {"recompute": "full", "recompute_layers": 3}):
        options = ModelOptions(memory=MemoryConfig.model_validate(memory))
        config = transformer_config(dense, ParallelConfig(), options)
        found.append((config.recompute_granularity, config.recompute_method, config.recompute_num_layers))
    assert found == [(None, None, None), ("selective", None, None), ("full", "uniform", 1), ("full", "block", 3)]
