"""Step `train`: one stage, from the checkpoint before it to its own. The same function on every rank of every layout."""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from conversion.hf_model import HFModel
from dasd_megatron.errors import Stopped, UserError
from dasd_megatron.recipe.estimate import training_flops
from dasd_megatron.recipe.layout import check_layout
from dasd_megatron.recipe.schema import Memory, Parallel, Training
from dasd_megatron.step import StepContext
from dasd_megatron.stop import StopRequest, stop_requests
from dasd_megatron.training import checkpoint
from dasd_megatron.training.data import Packs
from dasd_megatron.training.distributed import largest, process_groups
from dasd_megatron.training.model import ModelOptions, build_model
from dasd_megatron.training.precision import check_precision
from dasd_megatron.training.schedule import learning_rate
from dasd_megatron.training.step_log import StepLog
from dasd_megatron.training.trainer import NotFinite, Trainer
from dasd_megatron.training.usage import memory_gib, peak_flops

# Inside a training artifact: weights of the finished stage.
CHECKPOINT = "checkpoint"


def run(context: StepContext) -> dict[str, Any]:
    """Trains the stage, going on from the newest checkpoint of a killed run."""
    parallel, training = Parallel(**context.execution["parallel"]), Training(**context.config["training"])
    hf = HFModel(context.inputs["model"])
    memory, context_length = Memory(**context.execution["memory"]), context.artifact("packs").manifest["context_length"]
    check_layout(hf.config, hf.folder, parallel, training, memory, context_length)
    check_precision(training.fp8)
    with stop_requests() as stop, process_groups(parallel, context.config["seed"]):
        return Stage(context, hf, parallel, training).run(stop)


class Stage:
    """One rank's part of a stage: its data, its trainer, its checkpoints."""

    def __init__(self, context: StepContext, hf: HFModel, parallel: Parallel, training: Training) -> None:
        self.name, self.folder = context.name, context.output.path
        self.hf, self.training, self.execution = hf, training, context.execution
        self.packs = Packs(context.artifact("packs"), context.config["seed"], context.config["isolate_documents"])
        self.steps = training.total_steps(len(self.packs))
        memory = Memory(**self.execution["memory"])
        self.chunks = build_model(hf, parallel, ModelOptions.of(training, memory), self.packs.context_length)
        checkpoint.load_weights(self.chunks, context.inputs["start"] / CHECKPOINT)
        self.trainer = Trainer(self.chunks, hf, parallel, training, memory)

    def run(self, stop: StopRequest) -> dict[str, Any]:
        """All steps that are left, then the final weights. Returns facts for the manifest.

        Raises Stopped once a signal has come and the step it came in is saved.
        """
        checkpoints = checkpoint.StepCheckpoints(
            self.chunks, self.hf, self.trainer.optimizer, self.folder, self.execution
        )
        # Killed between the last save and COMPLETE, a stage has its weights.
        done = self.steps if (self.folder / CHECKPOINT).is_dir() else checkpoints.load_latest()
        with StepLog(self.name, self.folder, self.steps, done, self.execution["logging"]) as log:
            stopped = self._train(done, log, checkpoints, stop)
        if stopped is not None:
            if dist.get_rank() == 0:
                print(stopped, file=sys.stderr, flush=True)
            dist.barrier()  # torchrun ends the others when the first rank exits
            raise stopped
        if not (self.folder / CHECKPOINT).is_dir():
            checkpoint.save_weights(self.chunks, self.hf, self.folder / CHECKPOINT)
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
        for step in range(done + 1, self.steps + 1):
            try:
                log.append(self._step(step))
            except UserError:  # raised on every rank
                checkpoints.wait()
                raise
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

    def _step(self, step: int) -> dict[str, Any]:
        """The `step`-th update (from 1); its line in the log, the same on every rank."""
        start = time.monotonic()
        size, ranks = self.training.global_batch, parallel_state.get_data_parallel_world_size()
        samples = range((step - 1) * size, step * size)
        own = samples[parallel_state.get_data_parallel_rank() :: ranks]
        rate = learning_rate(step - 1, self.steps, self.training)
        try:
            result = self.trainer.step([self.packs.pack(sample) for sample in own], rate)
        except NotFinite as problem:
            documents = ", ".join(uuid for sample in samples for uuid in self.packs.uuids(sample))
            raise UserError(
                f"{self.name}: {problem} at step {step}; the checkpoint before it is kept. Lower "
                f"training.learning_rate, or look at the step's documents: {documents}"
            ) from None
        lengths = [length for sample in samples for length in self.packs.attended_lengths(sample)]
        seconds = time.monotonic() - start
        flops = training_flops(self.trainer.hf.shape, lengths) / seconds / dist.get_world_size()
        line: dict[str, Any] = {
            "step": step,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": rate,
            "tokens": sum(lengths),
            "seconds": round(seconds, 4),
            "tokens_per_second": round(sum(lengths) / seconds, 1),
            "tflops_per_rank": round(flops / 1e12, 4),  # of the model: recomputation and padding don't count
            "memory_gib": round(memory_gib(), 3),  # the peak of the fullest rank
        }
        if result.load_balancing_loss is not None:
            line["load_balancing_loss"] = result.load_balancing_loss
        peak = peak_flops(self.training.fp8 is not None)
        if peak is not None:
            line["share_of_peak"] = round(flops / peak, 4)
        return line
