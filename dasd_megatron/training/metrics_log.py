"""Where the metrics of each optimizer step go: metrics.jsonl, the terminal, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch.distributed as dist

from dasd_megatron.artifacts.training_files import METRICS
from dasd_megatron.training.train_step_config import TrackingConfig
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import write_atomically
from dasd_megatron.utils.progress import Progress


class _Sink(Protocol):
    def write(self, line: Mapping[str, Any]) -> None:
        """One optimizer step's metrics."""

    def close(self) -> None:
        """After the last one."""


class MetricsLog:
    """Written by rank 0; lines after the resumed step are dropped. Use as a context manager."""

    def __init__(self, name: str, folder: Path, steps: int, done: int, tracking: TrackingConfig) -> None:
        self._path = folder / METRICS
        self._sinks: list[_Sink] = []
        self._progress: Progress | None = None
        if dist.get_rank() == 0:
            kept = [line for line in self._lines() if line["step"] <= done]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_atomically(self._path, lambda file: file.write(text.encode()))
            if tracking.tensorboard is not None:
                self._sinks.append(_TensorBoard(tracking.tensorboard, done))
            if tracking.wandb_project is not None:
                self._sinks.append(_WeightsAndBiases(tracking.wandb_project, folder))
            self._progress = Progress(name, steps, "steps", done)

    def append(self, line: dict[str, Any]) -> None:
        """Adds one optimizer step's metrics."""
        if self._progress is None:
            return
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        for sink in self._sinks:
            sink.write(line)
        mfu = f" (MFU {line['mfu']:.0%})" if "mfu" in line else ""
        held_out = f" (held out {line['held_out_loss']:.4f})" if "held_out_loss" in line else ""
        self._progress.update(
            line["step"],
            f"loss {line['loss']:.4f}{held_out} grad_norm {line['grad_norm']:.3f} lr {line['lr']:.2e} "
            f"{line['tokens_per_second']:,.0f} tokens/s {line['tflops_per_gpu']:.3g} TFLOP/s a rank{mfu} "
            f"{line['memory_gib']:.1f} GiB",
        )

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

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in self._sinks:
            sink.close()
        if self._progress is not None:
            self._progress.__exit__(kind, value, trace)


class _TensorBoard:
    """Event files; points after the resumed step are hidden."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=done + 1 if done else None)  # type: ignore[no-untyped-call]

    def write(self, line: Mapping[str, Any]) -> None:
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, line["step"])  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class _WeightsAndBiases:
    """A run named like the artifact, so that a resumed stage continues the same one. The key comes from the environment."""

    def __init__(self, project: str, folder: Path) -> None:
        try:
            import wandb
        except ImportError:
            raise UserError("logging.wandb_project is set, but wandb isn't installed: pip install wandb") from None
        self._run = wandb.init(
            project=project, id=folder.name, name=folder.name, resume="allow", dir=str(folder.parent)
        )

    def write(self, line: Mapping[str, Any]) -> None:
        self._run.log({name: value for name, value in line.items() if name != "step"}, step=line["step"])

    def close(self) -> None:
        self._run.finish()
