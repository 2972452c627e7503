"""The load-balancing loss of a mixture of experts: its weight is what the recipe says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from conversion.convert import import_hf
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
from dasd_megatron.megatron_model.micro_batch import Pack
from dasd_megatron.megatron_model.process_groups import process_groups
from dasd_megatron.megatron_model.weights import load_weights
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.training.trainer import Trainer
from tests.helpers.tiny_models import CONTEXT, VOCABULARY, tiny_model

LENGTHS = [30, 7, 50]


def router_gradients(hf: HFModel, checkpoint: Path, coefficient: float, target_share: float) -> torch.Tensor:
    """Gradients of all routers after one step."""
    training = TrainingConfig(precision="fp32", global_batch=2, moe_aux_loss_coeff=coefficient, clip_grad=1e9)
    chunks = build_model(hf, ParallelConfig(), ModelOptions.of(training, MemoryConfig()), CONTEXT)
    load_weights(chunks, checkpoint)
    trainer = Trainer(chunks, hf, ParallelConfig(), training, MemoryConfig())
    random = np.random.default_rng(0)
    packs = []
    for lengths in (LENGTHS, LENGTHS[:2]):
        ids = random.integers(0, VOCABULARY, sum(lengths)).astype(np.int32)
        packs.append(Pack(ids, random.random(len(ids)) < target_share, lengths))
    trainer.step(packs, 1e-9)
    named = trainer.ddp[0].named_parameters()
    return torch.cat([parameter.main_grad.flatten() for name, parameter in named if "router" in name])


def test_its_weight_does_not_depend_on_the_share_of_targets(tmp_path: Path) -> None:
    """Gradients are divided by the targets of the batch; the balance is over all tokens, and must not grow by that."""
    hf = HFModel(tiny_model(tmp_path / "hf", "qwen3_moe"))
    import_hf(hf.folder, tmp_path / "checkpoint")
    with process_groups(ParallelConfig(), 0):
        auxiliary = [
            router_gradients(hf, tmp_path / "checkpoint", 1.0, share)
            - router_gradients(hf, tmp_path / "checkpoint", 0.0, share)
            for share in (1.0, 0.3)
        ]
        twice = router_gradients(hf, tmp_path / "checkpoint", 2.0, 0.3) - router_gradients(
            hf, tmp_path / "checkpoint", 0.0, 0.3
        )
    assert float(auxiliary[0].norm()) > 1e-3
    torch.testing.assert_close(auxiliary[1], auxiliary[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(twice, 2 * auxiliary[0], rtol=1e-4, atol=1e-6)
