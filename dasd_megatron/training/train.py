"""Step `train`: one stage, from the checkpoint before it to its own. The same function on every rank of every layout."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dasd_megatron.errors import UserError
from dasd_megatron.progress import Progress
from dasd_megatron.recipe.layout import check_layout
from dasd_megatron.recipe.schema import Memory, Parallel, Training
from dasd_megatron.step import StepContext
from dasd_megatron.training import platform

platform.prepare()

from megatron.core import parallel_state  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402

from conversion.hf_model import HFModel  # noqa: E402
from dasd_megatron.training import checkpoint  # noqa: E402
from dasd_megatron.training.data import MicroBatch, Packs, make_micro_batches  # noqa: E402
from dasd_megatron.training.distributed import process_groups  # noqa: E402
from dasd_megatron.training.loss import loss_sum  # noqa: E402
from dasd_megatron.training.model import ModelOptions, build_model, padding_mask, unwrap  # noqa: E402
from dasd_megatron.training.optimizer import build_optimizer, set_rates, wrap_model  # noqa: E402
from dasd_megatron.training.padding import alignment  # noqa: E402
from dasd_megatron.training.precision import check_precision  # noqa: E402
from dasd_megatron.training.schedule import learning_rate, total_steps  # noqa: E402

# Inside a training artifact: weights of the finished stage, and one JSON line a step.
CHECKPOINT = "checkpoint"
STEPS = "steps.jsonl"


def run(context: StepContext) -> dict[str, Any]:
    """Trains the stage, going on from the newest checkpoint of a killed run."""
    parallel, training = Parallel(**context.execution["parallel"]), Training(**context.config["training"])
    hf = HFModel(context.inputs["model"])
    check_layout(hf.config, hf.folder, parallel, training)
    check_precision(training)
    with process_groups(parallel, context.config["seed"]):
        return Trainer(context, hf, parallel).run()


class Trainer:
    """One rank's part of a stage."""

    def __init__(self, context: StepContext, hf: HFModel, parallel: Parallel) -> None:
        self.training = context.config["training"]
        self.execution = context.execution
        self.folder = context.output.path
        self.name = context.name
        self.packs = Packs(context.artifact("packs"), context.config["seed"], context.config["isolate_documents"])
        self.steps = total_steps(len(self.packs), self.training)
        self.hf, self.parallel = hf, parallel
        self.align = alignment(parallel, self.training["fp8"])
        memory = Memory(**self.execution["memory"])
        self.model = build_model(hf, parallel, ModelOptions.of(self.training, memory), self.packs.context_length)
        checkpoint.load_weights(self.model, context.inputs["start"] / CHECKPOINT)
        self.ddp = wrap_model(self.model, parallel.distributed_optimizer)
        self.optimizer = build_optimizer(self.ddp, self.training, parallel, memory)
        self.forward_backward = get_forward_backward_func()

    def run(self) -> dict[str, Any]:
        """All steps that are left, then the final weights. Returns facts for the manifest."""
        if (self.folder / CHECKPOINT).is_dir():  # killed between the last save and COMPLETE
            done = self.steps
        else:
            done = checkpoint.load_latest_step(self.model, self.optimizer, self.folder)
        log = StepLog(self.folder / STEPS, done)
        with Progress(self.name, self.steps, "steps", done) as progress:
            for step in range(done, self.steps):
                line = self.train_step(step)
                log.append(line)
                if dist.get_rank() == 0:
                    progress.update(step + 1, f"loss {line['loss']:.4f} grad_norm {line['grad_norm']:.3f}")
                if (step + 1) % self.execution["save_every"] == 0 and step + 1 < self.steps:
                    checkpoint.save_step(
                        self.model, self.optimizer, self.folder, step + 1, self.execution["keep_checkpoints"]
                    )
        if not (self.folder / CHECKPOINT).is_dir():
            checkpoint.save_weights(self.model, self.folder / CHECKPOINT)
        if dist.get_rank() == 0:
            for folder in checkpoint.step_folders(self.folder):
                shutil.rmtree(folder)
        lines = log.read()
        return {
            "counts": {"steps": self.steps, "packs": len(self.packs), "tokens": sum(line["tokens"] for line in lines)},
            "final_loss": lines[-1]["loss"] if lines else None,
        }

    def train_step(self, step: int) -> dict[str, Any]:
        """One optimizer step over the global batch; the line for steps.jsonl, the same on every rank."""
        start = time.monotonic()
        size, ranks = self.training["global_batch"], parallel_state.get_data_parallel_world_size()
        samples = range(step * size, (step + 1) * size)
        own = samples[parallel_state.get_data_parallel_rank() :: ranks]
        rate = learning_rate(step, self.steps, self.training)
        set_rates(self.optimizer, rate, self.training["weight_decay"])
        for chunk in self.ddp:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        batches = make_micro_batches(
            [self.packs.pack(sample) for sample in own],
            self.align,
            self.parallel.context,
            parallel_state.get_context_parallel_rank(),
        )
        outputs = self.forward_backward(
            forward_step_func=self._forward,
            data_iterator=[iter(batches) for _ in self.ddp],
            model=self.ddp,
            num_microbatches=len(batches),
            seq_length=batches[0].input_ids.shape[1] * self.parallel.context,
            micro_batch_size=1,
            forward_only=False,
        )
        loss = self._mean_loss(outputs)
        if not math.isfinite(loss):
            raise UserError(self._not_finite("loss", loss, step, samples))
        with platform.optimizer_checks():
            updated, grad_norm, _ = self.optimizer.step()
        if not updated or not math.isfinite(grad_norm):
            raise UserError(self._not_finite("gradient norm", grad_norm, step, samples))
        tokens = sum(sum(self.packs.document_lengths(sample)) for sample in samples)
        return {
            "step": step + 1,
            "loss": loss,
            "grad_norm": float(grad_norm),
            "lr": rate,
            "tokens": tokens,
            "tokens_per_second": round(tokens / (time.monotonic() - start), 1),
        }

    def _forward(self, batches: Iterator[MicroBatch], chunk: Any) -> tuple[torch.Tensor, Any]:
        """Megatron's forward step: the chunk's output (of the last one, the summed loss), and what makes it a loss."""
        batch = next(batches).to(next(chunk.parameters()).device)
        model = unwrap(chunk)
        output = chunk(
            batch.input_ids,
            batch.position_ids,
            attention_mask=None,
            packed_seq_params=batch.documents,
            output_processor=partial(self._loss, batch),
            padding_mask=padding_mask(batch, model) if self.hf.shape.experts else None,
        )
        return output, partial(self._per_token_loss, batch)

    def _loss(self, batch: MicroBatch, hidden_states: torch.Tensor, **helpers: Any) -> torch.Tensor:
        """Output of the last chunk, from its hidden states (Megatron's `output_processor`)."""
        weight = helpers["output_weight"]  # of tied embeddings
        return loss_sum(
            hidden_states,
            helpers["output_layer"].weight if weight is None else weight,
            batch.labels,
            batch.loss_mask,
            self.hf.shape.vocabulary,
            self.parallel.splits_sequence,
        )

    def _per_token_loss(
        self, batch: MicroBatch, loss: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """What Megatron's schedules take under `calculate_per_token_loss`: summed loss, number of targets, what to log."""
        targets = batch.loss_mask.sum()
        return loss, targets.to(torch.int), {"loss": loss.detach(), "targets": targets}

    def _mean_loss(self, outputs: list[dict[str, torch.Tensor]]) -> float:
        """Token mean over the global batch, the same on every rank."""
        sums = torch.zeros(2, dtype=torch.float64)
        for output in outputs:  # empty on all but the last pipeline stage
            sums += torch.stack([output["loss"], output["targets"]]).double().cpu()
        if parallel_state.get_tensor_model_parallel_rank() != 0:
            sums.zero_()  # tensor-parallel ranks hold the same loss
        dist.all_reduce(sums)
        return float(sums[0] / sums[1].clamp(min=1))

    def _not_finite(self, what: str, value: float, step: int, samples: range) -> str:
        documents = [uuid for sample in samples for uuid in self.packs.uuids(sample)]
        return (
            f"{self.name}: the {what} is {value} at step {step + 1}; the checkpoint before it is kept. Lower "
            f"training.learning_rate, or look at the step's documents: {', '.join(documents)}"
        )


class StepLog:
    """steps.jsonl: one line a step, written by rank 0; lines after the resumed step are dropped."""

    def __init__(self, path: Path, done: int) -> None:
        self._path = path
        if dist.get_rank() == 0:
            kept = [line for line in self._lines() if line["step"] <= done]
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def append(self, line: dict[str, Any]) -> None:
        """Adds one line."""
        if dist.get_rank() == 0:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All lines."""
        return self._lines() if dist.get_rank() == 0 else []

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        if self._path.is_file():
            for text in self._path.read_text().splitlines():
                try:
                    lines.append(json.loads(text))
                except ValueError:  # the last line of a killed run
                    break
        return lines
