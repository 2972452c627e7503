"""Step `train`: one stage, from the checkpoint before it to its own. The same function on every rank of every layout."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from dasd_megatron.errors import Stopped, UserError
from dasd_megatron.progress import Progress
from dasd_megatron.recipe.schema import Parallel
from dasd_megatron.step import StepContext
from dasd_megatron.training import platform
from dasd_megatron.training.stop import StopRequest, stop_requests

platform.prepare()

from megatron.core import parallel_state  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402

from conversion.hf_model import HFModel  # noqa: E402
from dasd_megatron.training import checkpoint  # noqa: E402
from dasd_megatron.training.data import MicroBatch, Packs  # noqa: E402
from dasd_megatron.training.distributed import largest, process_groups  # noqa: E402
from dasd_megatron.training.loss import token_loss_sum  # noqa: E402
from dasd_megatron.training.model import build_model  # noqa: E402
from dasd_megatron.training.optimizer import build_optimizer, set_rates, wrap_model  # noqa: E402
from dasd_megatron.training.schedule import learning_rate, total_steps  # noqa: E402

# Inside a training artifact: weights of the finished stage, and one JSON line a step.
CHECKPOINT = "checkpoint"
STEPS = "steps.jsonl"


def run(context: StepContext) -> dict[str, Any]:
    """Trains the stage, going on from the newest checkpoint of a killed run."""
    parallel = Parallel(**context.execution["parallel"])
    with stop_requests() as stop, process_groups(parallel, context.config["seed"]):
        return Trainer(context, parallel).run(stop)


class Trainer:
    """One rank's part of a stage."""

    def __init__(self, context: StepContext, parallel: Parallel) -> None:
        self.training = context.config["training"]
        self.execution = context.execution
        self.folder = context.output.path
        self.name = context.name
        self.packs = Packs(context.artifact("packs"), context.config["seed"], context.config["isolate_documents"])
        self.steps = total_steps(len(self.packs), self.training)
        self.hf = HFModel(context.inputs["model"])
        dtype = torch.bfloat16 if self.training["precision"] == "bf16" else torch.float32
        self.model = build_model(self.hf, parallel, dtype, self.packs.context_length)
        checkpoint.load_weights(self.model, context.inputs["start"] / CHECKPOINT)
        self.ddp = wrap_model(self.model)
        self.optimizer = build_optimizer(self.ddp, self.training)
        self.forward_backward = get_forward_backward_func()

    def run(self, stop: StopRequest) -> dict[str, Any]:
        """All steps that are left, then the final weights. Returns facts for the manifest.

        Raises Stopped once a signal has come and the step it came in is saved.
        """
        checkpoints = checkpoint.StepCheckpoints(self.model, self.optimizer, self.folder, self.execution)
        # Killed between the last save and COMPLETE, a stage has its weights.
        done = self.steps if (self.folder / CHECKPOINT).is_dir() else checkpoints.load_latest()
        log = StepLog(self.folder / STEPS, done)
        stopped = self._train(done, log, checkpoints, stop)
        if stopped is not None:
            if dist.get_rank() == 0:
                print(stopped, file=sys.stderr, flush=True)
            dist.barrier()  # torchrun ends the others when the first rank exits
            raise stopped
        if not (self.folder / CHECKPOINT).is_dir():
            checkpoint.save_weights(self.model, self.folder / CHECKPOINT)
        checkpoints.end()
        lines = log.read()
        return {
            "counts": {"steps": self.steps, "packs": len(self.packs), "tokens": sum(line["tokens"] for line in lines)},
            "final_loss": lines[-1]["loss"] if lines else None,
        }

    def _train(
        self, done: int, log: StepLog, checkpoints: checkpoint.StepCheckpoints, stop: StopRequest
    ) -> Stopped | None:
        """The steps after `done`, with their checkpoints; what to raise if a signal asked to stop before the last one."""
        with Progress(self.name, self.steps, "steps", done) as progress:
            for step in range(done + 1, self.steps + 1):
                try:
                    line = self.train_step(step - 1)
                except UserError:  # raised on every rank
                    checkpoints.wait()
                    raise
                log.append(line)
                if dist.get_rank() == 0:
                    progress.update(step, f"loss {line['loss']:.4f} grad_norm {line['grad_norm']:.3f}")
                if step == self.steps:
                    break
                if step % self.execution["save_every"] == 0:
                    checkpoints.save(step)
                signal_number, writing = largest(stop.signal_number, checkpoints.writing)
                if not writing:
                    checkpoints.wait()
                if signal_number:
                    checkpoints.save(step)
                    checkpoints.wait()
                    return Stopped(
                        f"{self.name}: stopped by {signal.Signals(signal_number).name} after step {step}; saved; "
                        "run the same command to go on"
                    )
        checkpoints.wait()
        return None

    def train_step(self, step: int) -> dict[str, Any]:
        """One optimizer step over the global batch; the line for steps.jsonl, the same on every rank."""
        start = time.monotonic()
        size, ranks = self.training["global_batch"], parallel_state.get_data_parallel_world_size()
        samples = range(step * size, (step + 1) * size)
        own = samples[parallel_state.get_data_parallel_rank() :: ranks]
        rate = learning_rate(step, self.steps, self.training)
        set_rates(self.optimizer, rate, self.training["weight_decay"])
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()
        outputs = self.forward_backward(
            forward_step_func=self._forward,
            data_iterator=self.packs.micro_batches(own),
            model=self.ddp,
            num_microbatches=len(own),
            seq_length=self.packs.context_length,
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
        tokens = sum(self.packs.tokens(sample) for sample in samples)
        return {
            "step": step + 1,
            "loss": loss,
            "grad_norm": float(grad_norm),
            "lr": rate,
            "tokens": tokens,
            "tokens_per_second": round(tokens / (time.monotonic() - start), 1),
        }

    def _forward(self, batches: Iterator[MicroBatch], model: Any) -> tuple[torch.Tensor, Any]:
        """Megatron's forward step: output of this pipeline stage, and the loss function for the last one."""
        batch = next(batches).to(next(self.model.parameters()).device)
        output = model(
            batch.input_ids,
            batch.position_ids,
            attention_mask=None,
            packed_seq_params=batch.documents,
        )
        return output, partial(token_loss_sum, batch.labels, batch.loss_mask, self.hf.shape.vocabulary)

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
