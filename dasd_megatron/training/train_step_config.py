"""The config of a training step."""

from __future__ import annotations

from pathlib import Path

from dasd_megatron.config.base import Config, ExecutionOnly
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.steps.step import StepConfig


class TrackingConfig(Config):
    """How often metrics are read, and where they go beside the terminal and metrics.jsonl; null where they don't."""

    every: int = 1
    tensorboard: Path | None = None
    wandb_project: str | None = None


class TrainConfig(StepConfig):
    """Config of a step `train`."""

    training: TrainingConfig
    isolate_documents: bool
    seed: int
    parallel: ExecutionOnly[ParallelConfig] = ParallelConfig()
    memory: ExecutionOnly[MemoryConfig] = MemoryConfig()
    tracking: ExecutionOnly[TrackingConfig] = TrackingConfig()
    # Of a rehearsal: every rank ends by SIGKILL after this step, once, so that the stage has to resume.
    kill_after: ExecutionOnly[int | None] = None
