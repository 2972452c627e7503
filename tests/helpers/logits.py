"""Logits and loss of one pack, on a CPU or a GPU."""

from __future__ import annotations

from typing import Any

import torch

from dasd_megatron.megatron_model.micro_batch import MicroBatch, Pack, make_micro_batches
from dasd_megatron.models.pack_padding import Alignment
from dasd_megatron.training.fused_loss import loss_sum


def aligned_batch(pack: Pack, multiple: int) -> MicroBatch:
    """One micro-batch, with a tail of padding where the pack doesn't divide."""
    return make_micro_batches([pack], Alignment(1, multiple))[0]


def logits_and_loss(model: Any, batch: MicroBatch, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the pack's tokens [tokens, vocabulary], and the mean loss of its targets."""
    kept: dict[str, torch.Tensor] = {}

    def process(hidden_states: torch.Tensor, output_layer: Any, output_weight: Any, **_: Any) -> torch.Tensor:
        weight = output_layer.weight if output_weight is None else output_weight
        kept["logits"] = (hidden_states[:, 0] @ weight.t()).float()
        return loss_sum(hidden_states, weight, batch.labels, batch.targets, vocabulary, sequence_parallel=False)

    total = model(
        batch.input_ids,
        batch.position_ids,
        attention_mask=None,
        packed_seq_params=batch.documents,
        output_processor=process,
        padding_mask=batch.padding,
    )
    return kept["logits"][~batch.padding[0]], total / len(batch.targets)
