"""Checkpoints in Megatron's distributed format: independent of the layout, written aside, then renamed.

A folder that carries its final name is whole; the newest one is what a killed stage resumes from.
"""

from __future__ import annotations

import queue
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from dasd_megatron.artifacts.files import disk_error, sync_folder
from dasd_megatron.errors import UserError
from dasd_megatron.training.platform import optimizer_checks

# The writer hands results over through a queue that, for the sake of asynchronous saves, lives in a process of its own; that
# process would outlive a killed rank. Saves here are synchronous, in threads, so a plain queue does.
filesystem_async._results_queue = queue.Queue()

# More than is left after a checkpoint file did not fit.
PROBE_BYTES = 64 << 20

_STEP = re.compile(r"step-(\d+)")


def save_weights(chunks: Sequence[GPTModel], folder: Path) -> None:
    """Writes the weights alone; called on every rank."""
    _save(_weights(chunks), folder)


def load_weights(chunks: Sequence[GPTModel], folder: Path) -> None:
    """Loads weights written in any layout; called on every rank."""
    _set_weights(chunks, _load(_weights(chunks), folder))


def save_step(chunks: Sequence[GPTModel], optimizer: MegatronOptimizer, folder: Path, step: int, keep: int) -> None:
    """Writes `folder/step-N`: everything that the steps after N depend on. Older ones beyond `keep` are removed."""
    weights = _weights(chunks)
    with optimizer_checks():
        state = {**weights, "optimizer": optimizer.sharded_state_dict(weights, metadata=_metadata())}
    _save({**state, "step": step}, folder / f"step-{step:07d}")
    if dist.get_rank() == 0:
        for old in step_folders(folder)[:-keep]:
            shutil.rmtree(old)


def load_latest_step(chunks: Sequence[GPTModel], optimizer: MegatronOptimizer, folder: Path) -> int:
    """Loads the newest `folder/step-N` that is whole and returns N; 0 where there is none.

    A damaged one is passed over with a warning. Raises UserError when all are damaged.
    """
    found = step_folders(folder)
    for step_folder in reversed(found):
        problem: UserError | None = None
        try:
            step = _load_step(chunks, optimizer, step_folder)
        except UserError as error:
            problem = error
        problems: list[UserError | None] = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
        if not any(problems):
            return step
        if dist.get_rank() == 0:
            print(f"warning: {next(filter(None, problems))}; going back to the checkpoint before", file=sys.stderr)
    if found:
        raise UserError(
            f"{folder}: every checkpoint in it is damaged; delete the folder and run again, the stage starts anew"
        )
    return 0


def _load_step(chunks: Sequence[GPTModel], optimizer: MegatronOptimizer, folder: Path) -> int:
    weights = _weights(chunks)
    with optimizer_checks():
        wanted = optimizer.sharded_state_dict(weights, is_loading=True, metadata=_metadata())
        state = _load({**weights, "optimizer": wanted, "step": 0}, folder)
        _set_weights(chunks, state)
        optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def step_folders(folder: Path) -> list[Path]:
    """Finished step checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _STEP.fullmatch(path.name))


def _weights(chunks: Sequence[GPTModel]) -> dict[str, Any]:
    """Weights by chunk; inside, tensors carry names that don't depend on the layout."""
    return {f"model{n}": chunk.sharded_state_dict(metadata=_metadata()) for n, chunk in enumerate(chunks)}


def _set_weights(chunks: Sequence[GPTModel], state: Mapping[str, Any]) -> None:
    for number, chunk in enumerate(chunks):
        chunk.load_state_dict(state[f"model{number}"])


def _metadata() -> dict[str, Any]:
    # `fully_reshardable`: optimizer state, too, can be loaded in another layout.
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
    }


def _save(state: dict[str, Any], folder: Path) -> None:
    aside = folder.with_name(f".{folder.name}.tmp")
    failure: UserError | None = None
    if dist.get_rank() == 0:
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
        except OSError as error:
            failure = disk_error(aside, error)
    _agree(failure)
    try:
        dist_checkpointing.save(state, str(aside))
    except (Exception, CheckpointException):
        failure = _write_failure(aside, folder)
        if failure is None:
            raise
    if failure is not None:
        shutil.rmtree(aside, ignore_errors=True)
    _agree(failure)
    if dist.get_rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        sync_folder(folder.parent)
    dist.barrier()


def _write_failure(aside: Path, folder: Path) -> UserError | None:
    """Whether the system refuses writes, and why. Megatron's writer threads lose the reason, so it is asked again."""
    try:
        (aside / "probe").write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        return disk_error(folder, error)
    return None


def _agree(failure: UserError | None) -> None:
    """Raises on every rank what went wrong on any of them; a rank that went on alone would wait for ever."""
    failures: list[UserError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for found in failures:
        if found is not None:
            raise found


def _load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint")
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(folder))
    except (Exception, CheckpointException) as error:  # many kinds, for damaged checkpoints and those of another model
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{folder}: can't be loaded as a checkpoint of this model: {reason}") from error
    return loaded
