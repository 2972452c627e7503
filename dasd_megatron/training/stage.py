"""One training stage, from the checkpoint before it to its own. The same function on every rank of every layout."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any, Never

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from dasd_megatron.artifacts.training_files import CHECKPOINT, KILLED
from dasd_megatron.megatron_model.attention_backend import (
    attention_in_use,
    check_attention_variables,
    fused_attention_or_error,
)
from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
from dasd_megatron.megatron_model.collectives import all_reduce_max
from dasd_megatron.megatron_model.process_groups import process_groups
from dasd_megatron.megatron_model.weights import load_weights
from dasd_megatron.models.flops import fp8_share, training_flops
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.models.parallel_layout import check_layout
from dasd_megatron.steps.step import StepContext
from dasd_megatron.training.balance import shared_out
from dasd_megatron.training.checkpoint.checkpoints import StepCheckpoints, save_weights
from dasd_megatron.training.data import HeldOutPacks, PackDataset
from dasd_megatron.training.device_stats import host_memory_gib, memory_gib, peak_flops
from dasd_megatron.training.gpu_environment import shown
from dasd_megatron.training.gpu_libraries import check_gpu_libraries
from dasd_megatron.training.lr_schedule import learning_rate
from dasd_megatron.training.metrics_log import MetricsLog
from dasd_megatron.training.precision_check import check_precision
from dasd_megatron.training.step_profiler import StepProfiler
from dasd_megatron.training.train_step_config import TrainConfig
from dasd_megatron.training.trainer import NotFinite, StepOutcome, StepResult, Trainer
from dasd_megatron.utils.errors import Stopped, UserError
from dasd_megatron.utils.out_of_memory import memory_or_error
from dasd_megatron.utils.stop_signals import StopRequest, stop_requests

# What takes less memory.
LEANER = (
    "raise parallel.context, tensor or pipeline, or set memory.recompute or memory.offload_optimizer (`dasd train --estimate` "
    "says what each of them takes)"
)


def train(context: StepContext[TrainConfig]) -> dict[str, Any]:
    """Trains the stage, resuming from the newest checkpoint of a killed run. Returns facts for the manifest."""
    config, hf = context.config, HFModel(context.inputs["model"])
    context_length = context.artifact("packs").manifest["context_length"]
    check_layout(hf.config, hf.folder, config.parallel, config.training, config.memory, context_length)
    check_gpu_libraries(hf.shape.sinks)
    check_attention_variables()
    check_precision(config.training, context_length)
    with (
        stop_requests() as stop,
        process_groups(config.parallel, config.seed),
        memory_or_error(f"{context.name}: packs of {context_length:,} tokens", LEANER),
    ):
        return TrainingStage(context, hf).run(stop)


@dataclass(frozen=True)
class QueuedStep:
    """A step whose numbers may not be there yet: which packs it took, their tokens and model FLOPs, and at which rate."""

    step: int
    samples: range
    tokens: int
    flops: float
    lr: float
    outcome: StepOutcome


class TrainingStage:
    """One rank's part of a stage: its data, its trainer, its checkpoints."""

    def __init__(self, context: StepContext[TrainConfig], hf: HFModel) -> None:
        self.name, self.folder = context.name, context.output.path
        self.hf, self.config, self.training = hf, context.config, context.config.training
        self.packs = PackDataset(context.artifact("packs"), self.config.seed, self.config.isolate_documents)
        self.held_out = HeldOutPacks(
            context.artifact("packs"), self.config.seed, self.config.isolate_documents, self.training.global_batch
        )
        self.steps = self.training.total_steps(len(self.packs))
        options = ModelOptions.of(self.training, self.config.memory)
        self.chunks = build_model(hf, self.config.parallel, options, self.packs.context_length)
        start = context.inputs["start"]
        try:
            load_weights(self.chunks, start / CHECKPOINT)
        except UserError as error:
            raise UserError(f"{error}; delete {start}, and the step that writes it runs again") from error
        self.trainer = Trainer(self.chunks, hf, self.config.parallel, self.training, self.config.memory)
        self.profiler = StepProfiler(self.training.profile, self.folder)
        self._unread: list[QueuedStep] = []
        self._since = 0.0

    def run(self, stop: StopRequest) -> dict[str, Any]:
        """All steps that are left, then the final weights. Returns facts for the manifest.

        Raises Stopped once a signal has come and the step it came in is saved.
        """
        checkpoints = StepCheckpoints(self.chunks, self.hf, self.trainer.optimizer, self.folder, self.config)
        # Killed between the last save and COMPLETE, a stage has its weights.
        done = self.steps if (self.folder / CHECKPOINT).is_dir() else checkpoints.load_latest()
        with MetricsLog(self.name, self.folder, self.steps, done, self.config.tracking) as log:
            stopped = self._train(done, log, checkpoints, stop)
        if stopped is not None:
            if dist.get_rank() == 0:
                print(stopped, file=sys.stderr, flush=True)
            dist.barrier()  # torchrun ends the others when the first rank exits
            raise stopped
        if not (self.folder / CHECKPOINT).is_dir():
            save_weights(self.chunks, self.hf, self.folder / CHECKPOINT)
        checkpoints.end()
        lines, host_memory = log.read(), host_memory_gib()
        return {
            "counts": {"steps": self.steps, "packs": len(self.packs), "tokens": sum(line["tokens"] for line in lines)},
            "final_loss": lines[-1]["loss"] if lines else None,
            "host_memory_gib": round(host_memory, 3),
        }

    def _train(self, done: int, log: MetricsLog, checkpoints: StepCheckpoints, stop: StopRequest) -> Stopped | None:
        """The steps after `done`, with their checkpoints; what to raise if a signal asked to stop before the last one."""
        for step in range(done + 1, self.steps + 1):
            saved = step % self.training.save_every == 0 and step < self.steps
            with (
                self.profiler.of(step),
                fused_attention_or_error("set another training.attention (auto, cudnn, flash)"),
            ):
                self._unread.append(self._step(step))
            if step == done + 1:
                self._describe_gpu()
            if saved or step % self.config.tracking.every == 0 or self._is_measured(step):
                self._read(log, checkpoints)
            if step == self.steps:
                break
            if saved:
                checkpoints.save(step)
            if done == 0 and step == self.config.kill_after:
                self._kill(step, checkpoints)
            # One collective a step: a signal that reached one rank stops all of them after the same step, and a checkpoint gets
            # its name only once no rank is writing.
            signal_number, writing = all_reduce_max(stop.signal_number, checkpoints.writing)
            if not writing:
                checkpoints.wait()
            if signal_number:
                self._read(log, checkpoints)
                checkpoints.save(step)
                checkpoints.wait()
                return Stopped(
                    f"{self.name}: stopped by {signal.Signals(signal_number).name} after step {step}; saved; "
                    "run the same command to resume"
                )
        checkpoints.wait()
        return None

    def _kill(self, step: int, checkpoints: StepCheckpoints) -> Never:
        """Ends this rank, as all others, with a checkpoint on disk: as if their node were lost."""
        checkpoints.wait()
        dist.barrier()
        if dist.get_rank() == 0:
            print(f"{self.name}: killed after step {step}, to see it resume", file=sys.stderr, flush=True)
            (self.folder / KILLED).touch()
        dist.barrier()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    def _describe_gpu(self) -> None:
        """What the stage runs on, and what it found set."""
        if torch.cuda.is_available() and dist.get_rank() == 0:
            print(
                f"{torch.cuda.get_device_name()}, attention: {attention_in_use()} {shown(os.environ)}", file=sys.stderr
            )

    def _step(self, step: int) -> QueuedStep:
        """The `step`-th optimizer step (from 1)."""
        if not self._unread:
            self._since = time.monotonic()
        # Packs are numbered over all epochs, and step n takes the n-th `global_batch` of them, whatever the layout.
        size = self.training.global_batch
        samples = range((step - 1) * size, step * size)
        lengths = [self.packs.attended_lengths(sample) for sample in samples]
        costs = [training_flops(self.hf.shape, of_pack) for of_pack in lengths]
        shares = shared_out(costs, parallel_state.get_data_parallel_world_size())
        own = [self.packs.pack(samples[index]) for index in shares[parallel_state.get_data_parallel_rank()]]
        lr = learning_rate(step - 1, self.steps, self.training)
        return QueuedStep(step, samples, sum(map(sum, lengths)), sum(costs), lr, self.trainer.step(own, lr))

    def _read(self, log: MetricsLog, checkpoints: StepCheckpoints) -> None:
        """Waits for the steps whose numbers nobody has looked at, and logs them; collective.

        Raises UserError on every rank, after a save that is under way.
        """
        if not self._unread:
            return
        results: list[StepResult] = []
        failure: UserError | None = None
        for queued in self._unread:
            try:
                results.append(self._result(queued))
            except UserError as error:
                failure = error
                break
        seconds = (time.monotonic() - self._since) / len(self._unread)
        memory = memory_gib()  # the peak of the fullest rank
        lines = [
            self._line(queued, result, seconds, memory)
            for queued, result in zip(self._unread, results, strict=failure is None)
        ]
        if self.held_out and failure is None and self._is_measured(lines[-1]["step"]):
            lines[-1]["held_out_loss"] = self._held_out_loss()
        for line in lines:
            log.append(line)
        self._unread = []
        if failure is not None:
            checkpoints.wait()
            raise failure

    def _is_measured(self, step: int) -> bool:
        """Whether the held-out loss is measured after this step."""
        return step % self.training.held_out_every == 0 or step == self.steps

    def _held_out_loss(self) -> float:
        rank, ranks = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
        parallel = self.config.parallel
        together = parallel.pipeline if parallel.virtual_pipeline > 1 else 1  # interleaved stages take so many
        return self.trainer.loss(self.held_out.share(rank, ranks, together))

    def _result(self, queued: QueuedStep) -> StepResult:
        try:
            return queued.outcome.read()
        except NotFinite as problem:
            documents = ", ".join(uuid for sample in queued.samples for uuid in self.packs.uuids(sample))
            raise UserError(
                f"{self.name}: {problem} at step {queued.step}; the checkpoint before it is kept. Lower "
                f"training.learning_rate, or look at the step's documents: {documents}"
            ) from None

    def _line(self, queued: QueuedStep, result: StepResult, seconds: float, memory: float) -> dict[str, Any]:
        """One step's line in the log, the same on every rank."""
        flops = queued.flops / seconds / dist.get_world_size()
        line: dict[str, Any] = {
            "step": queued.step,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": queued.lr,
            "tokens": queued.tokens,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(queued.tokens / seconds, 1),
            "tflops_per_gpu": round(flops / 1e12, 6),  # of the model: recomputation and padding don't count
            "memory_gib": round(memory, 3),
        }
        if result.load_balancing_loss is not None:
            line["load_balancing_loss"] = result.load_balancing_loss
        peak = peak_flops(fp8_share(self.hf.shape, queued.tokens, queued.flops, self.training))
        if peak is not None:
            line["mfu"] = round(flops / peak, 4)
        return line
