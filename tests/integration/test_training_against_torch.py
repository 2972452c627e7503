"""Optimizer steps against another implementation: transformers' model, torch's autograd, clipping and AdamW, in fp32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.megatron_model.micro_batch import Pack
from dasd_megatron.training.data import PackDataset
from dasd_megatron.training.lr_schedule import learning_rate
from dasd_megatron.training.train_step_config import TrainConfig
from tests.helpers.tiny_models import HELD_OUT_PACKS
from tests.helpers.training_runs import Run, Runs, check_close

STEPS = 8
# Sums in another order; AdamW divides by small numbers, and steps add up.
LOSS, GRAD_NORM, WEIGHTS = 1e-5, 1e-4, 1e-4


def summed_loss(model: Any, pack: Pack) -> torch.Tensor:
    """Each document by itself."""
    total, start = torch.zeros(()), 0
    for length in pack.lengths:
        ids = torch.from_numpy(pack.ids[start : start + length].astype(np.int64))[None]
        targets = torch.from_numpy(pack.targets[start + 1 : start + length].copy())
        losses = torch.nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="none")
        total, start = total + losses[targets].sum(), start + length
    return total


def targets_of(pack: Pack) -> int:
    """A document's first token is predicted from nothing."""
    first = np.cumsum([0, *pack.lengths[:-1]])
    return int(pack.targets.sum() - pack.targets[first].sum())


def trained_by_torch(run: Run, packs: Path) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    """The log and the weights that the run should have."""
    from transformers import AutoModelForCausalLM

    config = TrainConfig.model_validate(json.loads(run.context.read_text())["config"])
    training, data = config.training, PackDataset(Artifact(packs), config.seed, True)
    model = AutoModelForCausalLM.from_pretrained(str(run.model), dtype=torch.float32)
    parameters = list(model.parameters())
    matrices, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = (training.adam_beta1, training.adam_beta2)
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=training.adam_eps)
    lines: list[dict[str, Any]] = []
    for step in range(1, STEPS + 1):
        batch = [
            data.pack(sample) for sample in range((step - 1) * training.global_batch, step * training.global_batch)
        ]
        optimizer.zero_grad()
        loss = torch.stack([summed_loss(model, pack) for pack in batch]).sum() / sum(map(targets_of, batch))
        loss.backward()
        norm, lr = (
            float(torch.nn.utils.clip_grad_norm_(parameters, training.clip_grad)),
            learning_rate(step - 1, STEPS, training),
        )
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        tokens = sum(len(pack.ids) for pack in batch)
        lines.append({"step": step, "loss": loss.item(), "grad_norm": norm, "lr": lr, "tokens": tokens})
    held_out = [PackDataset(Artifact(packs), config.seed, True, "held_out").pack(n) for n in range(HELD_OUT_PACKS)]
    with torch.no_grad():
        total = torch.stack([summed_loss(model, pack) for pack in held_out]).sum()
    lines[-1]["held_out_loss"] = total.item() / sum(map(targets_of, held_out))
    return lines, model.state_dict()


@pytest.mark.parametrize("family", ["qwen3", "llama", "qwen2"])
def test_steps(family: str, tmp_path: Path) -> None:
    """Qwen3's embedding is tied to its head; Qwen2 has biases."""
    runs = Runs(tmp_path, family)
    run = runs.run("ours", ParallelConfig(), steps=STEPS)
    lines, weights = trained_by_torch(run, runs.packs)
    check_close(run.finish(), lines, LOSS, GRAD_NORM)
    found = run.weights()
    assert lines[-1]["loss"] < lines[0]["loss"]
    for name, weight in found.items():
        torch.testing.assert_close(weight, weights[name], atol=WEIGHTS, rtol=0)
