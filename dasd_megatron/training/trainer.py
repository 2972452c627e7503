"""Optimizer steps on packs: one rank's part, the same code in every layout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.moe.moe_logging import get_moe_metrics_tracker

from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.cpu_backend.megatron_without_cuda import optimizer_checks
from dasd_megatron.megatron_model.build_model import unwrap
from dasd_megatron.megatron_model.micro_batch import MicroBatch, Pack, make_micro_batches, padding_mask
from dasd_megatron.megatron_model.moe_router import PackRouter
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.models.pack_padding import alignment
from dasd_megatron.training.checkpoint.fp8_scales import unchanged_scales
from dasd_megatron.training.fused_loss import loss_sum
from dasd_megatron.training.optimizer import build_optimizer, set_lr, wrap_model


class NotFinite(Exception):
    """A loss or gradient norm that is no number: what the trainer holds can't be used any more. Raised on every rank."""


@dataclass(frozen=True)
class StepResult:
    """What came of one update, as numbers; the same on every rank.

    Attributes:
        loss: token mean over the global batch, in nats.
        grad_norm: before clipping.
        load_balancing_loss: mean over packs and layers, 1 where all experts are chosen alike; None in a dense model, or
            where its weight is 0.
    """

    loss: float
    grad_norm: float
    load_balancing_loss: float | None


@dataclass(frozen=True)
class StepOutcome:
    """What came of one update, on the device: nothing has waited for it yet.

    Attributes:
        sums: float64 [3], over all ranks: the losses of the targets, their number, and the load-balancing losses.
        grad_norm: before clipping.
        balanced: packs x layers that the load-balancing losses are of; 0 without.
    """

    sums: torch.Tensor
    grad_norm: torch.Tensor | float
    balanced: int

    def read(self) -> StepResult:
        """Waits for the device. Raises NotFinite."""
        norm = torch.as_tensor(self.grad_norm, dtype=torch.float64, device=self.sums.device).reshape(1)
        loss_sum, targets, balance, grad_norm = torch.cat([self.sums, norm]).tolist()
        loss = loss_sum / max(targets, 1)
        if not math.isfinite(loss):
            raise NotFinite(f"the loss is {loss}")
        if not math.isfinite(grad_norm):
            raise NotFinite(f"the gradient norm is {grad_norm}")
        return StepResult(loss, grad_norm, balance / self.balanced if self.balanced else None)


class Trainer:
    """Model chunks, their gradients and optimizer."""

    def __init__(
        self,
        chunks: Sequence[GPTModel],
        hf: HFModel,
        parallel: ParallelConfig,
        training: TrainingConfig,
        memory: MemoryConfig,
    ) -> None:
        """`chunks` hold the weights to start from: the optimizer's master weights are copied from them here."""
        self.hf, self.parallel, self.training = hf, parallel, training
        self.align = alignment(parallel, training.fp8)
        self.ddp = wrap_model(chunks, parallel.distributed_optimizer)
        self.optimizer = build_optimizer(self.ddp, training, parallel, memory)
        self._device = next(chunks[0].parameters()).device
        self._forward_backward = get_forward_backward_func()

    def step(self, packs: Sequence[Pack], lr: float) -> StepOutcome:
        """One update on this data-parallel rank's packs of the global batch, a micro-batch each.

        On a GPU it is queued: the host waits for it where the outcome is read.
        """
        set_lr(self.optimizer, lr, self.training.weight_decay)
        for chunk in self.ddp:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        batches = self._micro_batches(packs)
        if self.hf.shape.experts:
            PackRouter.targets_per_token = _targets_per_token(batches)
        # Each micro-batch gives the sum of its targets' losses; Megatron adds up gradients and numbers of targets over
        # micro-batches and data-parallel ranks, and divides the one by the other (finalize_model_grads): the token mean over the
        # global batch, in every layout.
        sums, balanced = self._sums(self._run(batches, forward_only=False))
        # Reduces the norm over all ranks, clips, and updates each rank's shard of the master weights.
        with optimizer_checks():
            _, grad_norm, _ = self.optimizer.step()
        return StepOutcome(sums, grad_norm, balanced)

    @torch.no_grad()
    def loss(self, packs: Sequence[Pack]) -> float:
        """Token mean over all ranks' packs, an equal number on each, in nats; nothing is learned. The same on every rank."""
        for chunk in self.ddp:
            chunk.eval()
        with unchanged_scales([unwrap(chunk) for chunk in self.ddp]):
            sums, _ = self._sums(self._run(self._micro_batches(packs), forward_only=True))
        for chunk in self.ddp:
            chunk.train()
        loss_sum, targets, _ = sums.tolist()
        return float(loss_sum / max(targets, 1))

    def _micro_batches(self, packs: Sequence[Pack]) -> list[MicroBatch]:
        """This rank's part of each pack."""
        return make_micro_batches(packs, self.align, self.parallel.context, parallel_state.get_context_parallel_rank())

    def _run(self, batches: Sequence[MicroBatch], forward_only: bool) -> list[dict[str, torch.Tensor]]:
        """All micro-batches through the model, by Megatron's schedule for the pipeline. Returns their losses."""
        outputs: list[dict[str, torch.Tensor]] = self._forward_backward(
            forward_step_func=self._forward,
            data_iterator=[iter(batches) for _ in self.ddp],
            model=self.ddp,
            num_microbatches=len(batches),
            # Before the split over context-parallel ranks: what pipeline stages send one another follows from it.
            seq_length=batches[0].input_ids.shape[1] * self.parallel.context,
            micro_batch_size=1,
            forward_only=forward_only,
        )
        return outputs

    def _forward(self, batches: Iterator[MicroBatch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Any]:
        """Megatron's forward step: the chunk's output (of the last one, the summed loss), and what makes it a loss."""
        batch = next(batches).to(self._device)
        output = chunk(
            batch.input_ids,
            batch.position_ids,
            attention_mask=None,
            packed_seq_params=batch.documents,
            output_processor=partial(self._loss, batch),
            padding_mask=padding_mask(batch, unwrap(chunk)) if self.hf.shape.experts else None,
        )
        return output, partial(_per_token_loss, batch)

    def _loss(self, batch: MicroBatch, hidden_states: torch.Tensor, **helpers: Any) -> torch.Tensor:
        """Output of the last chunk, from its hidden states (Megatron's `output_processor`)."""
        weight = helpers["output_weight"]  # of tied embeddings
        return loss_sum(
            hidden_states,
            helpers["output_layer"].weight if weight is None else weight,
            batch.labels,
            batch.targets,
            self.hf.shape.vocabulary,
            self.parallel.splits_sequence,
        )

    def _sums(self, outputs: list[dict[str, torch.Tensor]]) -> tuple[torch.Tensor, int]:
        """See StepOutcome. One collective over all ranks: those that hold no loss, or another's, give zeros."""
        sums = torch.zeros(3, dtype=torch.float64, device=self._device)
        for output in outputs:  # empty on all but the last pipeline stage
            sums[0] += output["loss"]
            sums[1] += output["targets"]
        if parallel_state.get_tensor_model_parallel_rank() != 0:
            sums.zero_()  # tensor-parallel ranks hold the same loss
        balance = get_moe_metrics_tracker().metrics.get("load_balancing_loss")
        if balance is not None:  # this rank's layers and tokens, since it was cleared
            sums[2] = balance.values.sum()
            balance.values.zero_()
        dist.all_reduce(sums)
        return sums, self.hf.shape.layers * self.training.global_batch if balance is not None else 0


def _targets_per_token(batches: Sequence[MicroBatch]) -> float:
    """Share of the global batch's tokens that are targets."""
    counts = torch.tensor([[len(batch.targets), int((~batch.padding).sum())] for batch in batches]).sum(0)
    dist.all_reduce(counts)  # in host memory; over ranks that hold the same tokens, too: the share is the same
    return float(counts[0] / counts[1])


def _per_token_loss(
    batch: MicroBatch, loss: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """What Megatron's schedules take under `calculate_per_token_loss`: summed loss, number of targets, what to log."""
    targets = torch.full((), len(batch.targets), dtype=torch.int, device=loss.device)
    return loss, targets, {"loss": loss.detach(), "targets": targets}
