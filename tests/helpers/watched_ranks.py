"""One rank of a training step described by a file (see tests/helpers/tiny_models.py): -m tests.helpers.watched_ranks FILE.

With odd behaviour that tests of checkpoints ask for in the environment:

SLOW_WRITES: seconds that pass between the snapshot and the writing of a checkpoint's files.
SLOW_STEPS: seconds that each step takes longer.
FAIL_AT: the step in which training fails on every rank.
REFUSE_METADATA: rank 0 finds the disk full after all ranks have written their files.
TE_ON_CPU: folders of Transformer Engine and Triton, as in PATH: the GPU's layers, on the CPU (tests/helpers/te_on_cpu).
After each step every rank draws from its random generators and adds that to draws-RANK.jsonl.
"""

from __future__ import annotations

import errno
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.steps.step import StepContext
from dasd_megatron.utils.child_process import die_with_launcher
from dasd_megatron.utils.errors import Stopped, UserError


def check_gradients_are_added_in_place(chunks: list[Any]) -> None:
    """By Transformer Engine's layers, to Megatron's float32 buffers."""
    weights = [
        (name, parameter)
        for chunk in chunks
        for name, parameter in chunk.decoder.named_parameters()
        if "linear_" in name and ".weight" in name
    ]
    assert weights
    assert all(parameter.grad_added_to_main_grad for _, parameter in weights), [name for name, _ in weights]


def check_offloaded_share(optimizer: Any, share: float) -> None:
    """Of the optimizer's parameters, in host memory; in steps of a parameter."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        sizes = [
            [p.numel() for group in each.param_groups for p in group["params"]]
            for each in part.optimizer.sub_optimizers
        ]
        on_host = sum(sum(own) for own in sizes[: len(part.optimizer.cpu_optimizers)])
        every = sum(map(sum, sizes))
        assert abs(on_host - share * every) <= max(map(max, sizes)), (on_host, every)


def behave(folder: Path) -> None:
    import torch

    from dasd_megatron.training import stage
    from dasd_megatron.training.checkpoint import async_save

    from megatron.core.tensor_parallel.random import get_cuda_rng_tracker  # isort: skip

    write, train_step, result = async_save.Save._write, stage.TrainingStage._step, stage.TrainingStage._result
    draws = folder / f"draws-{os.environ.get('RANK', '0')}.jsonl"

    def slow_write(self: async_save.Save, buckets: list[Any]) -> None:
        time.sleep(float(os.environ.get("SLOW_WRITES", "0")))
        write(self, buckets)

    def watched_step(self: stage.TrainingStage, step: int) -> stage.QueuedStep:
        queued = train_step(self, step)
        time.sleep(float(os.environ.get("SLOW_STEPS", "0")))
        if "TE_ON_CPU" in os.environ:
            check_gradients_are_added_in_place(self.chunks)
            config = self.chunks[0].config
            assert config.moe_router_padding_for_quantization == bool(config.fp8 and config.num_moe_experts)
            if self.config.memory.offload_optimizer:
                check_offloaded_share(self.trainer.optimizer, self.config.memory.offload_optimizer)
        with get_cuda_rng_tracker().fork():
            tracked = torch.rand(1).item()
        with draws.open("a") as file:
            values = [random.random(), np.random.rand(), torch.rand(1).item(), tracked]
            file.write(json.dumps([draws.name, step, *values]) + "\n")
        return queued

    def failed_result(self: stage.TrainingStage, queued: stage.QueuedStep) -> Any:
        if queued.step == int(os.environ.get("FAIL_AT", "0")):
            raise UserError("the loss is nan")
        return result(self, queued)

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async_save.Save._write, stage.TrainingStage._step = slow_write, watched_step
    stage.TrainingStage._result = failed_result
    if "REFUSE_METADATA" in os.environ:
        async_save.save_config = refuse


def main() -> int:
    die_with_launcher()
    if "TE_ON_CPU" in os.environ:
        from tests.helpers.te_on_cpu.install import install_if_asked

        install_if_asked()
    from dasd_megatron.training.stage import train
    from dasd_megatron.training.train_step_config import TrainConfig

    content = json.loads(Path(sys.argv[1]).read_text())
    config = TrainConfig.model_validate(content["config"])
    inputs = {name: Path(path) for name, path in content["inputs"].items()}
    output = ArtifactWriter(Path(content["output"]), {})
    if os.environ.get("RANK", "0") == "0":
        output.clear_leftovers()
    behave(output.path)
    try:
        train(StepContext(content["name"], config, inputs, output))
    except Stopped:
        return Stopped.EXIT_CODE
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
