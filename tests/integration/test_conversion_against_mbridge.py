"""Our conversion tables against another conversion, mbridge's: the same Megatron weights from the same files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.megatron_model.process_groups import process_groups
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.models.parameter_mapping import ParamInstance
from tests.helpers.tiny_models import tiny_model


def mbridge_name(part: ParamInstance) -> str:
    """It names the weights of grouped experts, as Transformer Engine does."""
    if part.expert is None:
        return part.name
    return part.name.replace(f"local_experts.{part.expert}.", "") + str(part.expert)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe", "qwen2", "llama"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_mbridge_makes_the_same_weights(family: str, tied: bool, tmp_path: Path) -> None:
    hf = HFModel(tiny_model(tmp_path, family, tied=tied and family != "qwen3_moe"))
    with process_groups(ParallelConfig(), 0):
        from mbridge import AutoBridge

        bridge = AutoBridge.from_pretrained(str(tmp_path))
        bridge.dtype = torch.float32
        seen = set()
        for part in hf.parts:
            names = bridge._weight_name_mapping_mcore_to_hf(mbridge_name(part))
            theirs = bridge._weight_to_mcore_format(mbridge_name(part), [hf.tensor(name) for name in names])
            assert torch.equal(hf.parameter(part), theirs), part.name
            seen.update(names)
    assert seen == set(hf.tensors)
