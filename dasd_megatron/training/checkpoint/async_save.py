"""One save of a sharded state: snapshotted, written into a temporary folder by a thread, then renamed.

Megatron plans who writes what. The writing and the end are done here: Megatron's own lose the reason why the system refused a
write, and leave the other ranks waiting where rank 0 alone can't write its part. A thread, since a process of its own would
outlive a killed rank.
"""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from torch.distributed.checkpoint.storage import WriteResult

from dasd_megatron.megatron_model.collectives import raise_on_all_ranks
from dasd_megatron.models.checkpoint_index import write_index_hash
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import disk_error, sync, underlying

# Megatron's writer makes a queue in a process of its own, which nothing here uses and a killed rank would leave behind.
filesystem_async._results_queue = queue.Queue()


class Save:
    """A save under way. Made and finished on every rank; in between the state may change, and training continues.

    `write_assets` writes the model's config and tokenizer into the folder that it's given; called on rank 0.
    """

    def __init__(self, state: dict[str, Any], folder: Path, write_assets: Callable[[Path], None]) -> None:
        self._folder, self._temporary, self._write_assets = folder, _temporary(folder), write_assets
        failure: UserError | None = None
        if dist.get_rank() == 0:
            try:
                shutil.rmtree(self._temporary, ignore_errors=True)
                self._temporary.mkdir(parents=True)
            except OSError as error:
                failure = disk_error(self._temporary, error)
        raise_on_all_ranks(failure)
        self._plan, own = _Plan(), _storages(state)
        dist_checkpointing.save(
            state, str(self._temporary), sharded_strategy=self._plan, async_sharded_save=True, async_strategy="mcore"
        )
        self._written: list[WriteResult] = []
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._write, args=(_snapshot(self._plan.writer, own),), name=folder.name)
        self._thread.start()

    @property
    def writing(self) -> bool:
        """Whether this rank's files are still being written."""
        return self._thread.is_alive()

    def finish(self) -> None:
        """Waits for every rank's files and gives the folder its name. Raises UserError on every rank if one can't write."""
        self._thread.join()
        outcomes: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(self._outcome(), outcomes)
        raise_on_all_ranks(self._commit(outcomes) if outcomes is not None else None)

    def _write(self, buckets: list[Any]) -> None:
        try:
            for place, bucket in enumerate(buckets):
                _, result = self._plan.writer.write_preloaded_data(
                    [self._plan.writer.transforms], place, bucket, None, None, use_fsync=False
                )
                if isinstance(result, Exception):
                    raise result
                sync(Path(bucket[0]))  # Megatron's fsync comes before its last buffer is flushed
                self._written += result
        except Exception as error:  # raised again in `finish`
            self._failure = error

    def _outcome(self) -> list[WriteResult] | UserError:
        """What this rank wrote, or why the system refused."""
        if self._failure is None:
            return self._written
        reason = underlying(self._failure)
        if reason is None:
            raise self._failure
        return disk_error(self._folder, reason)

    def _commit(self, outcomes: list[Any]) -> UserError | None:
        failure = next((outcome for outcome in outcomes if isinstance(outcome, UserError)), None)
        if failure is None:
            try:
                self._write_assets(self._temporary)
                self._plan.writer.finish(self._plan.metadata, outcomes)
                write_index_hash(self._temporary)
                save_config(CheckpointingConfig(self._plan.backend, self._plan.version), str(self._temporary))
                sync(self._temporary / "metadata.json")
                sync(self._temporary)
                shutil.rmtree(self._folder, ignore_errors=True)
                self._temporary.rename(self._folder)
                sync(self._folder.parent)
            except OSError as error:
                failure = disk_error(self._folder, error)
        if failure is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        return failure


def remove(folder: Path) -> None:
    """Removes a saved folder. It loses its name first, so that one half removed is never taken for a whole one."""
    temporary = _temporary(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    folder.rename(temporary)
    shutil.rmtree(temporary)


class _Plan(TorchDistSaveShardedStrategy):  # type: ignore[misc]
    """Megatron's plan of a save, kept instead of executed."""

    writer: Any
    metadata: Any

    def _get_save_and_finalize_callbacks(self, writer: Any, planned: tuple[Any, ...], strategy: str) -> AsyncRequest:
        self.writer, self.metadata = writer, planned[1]
        return AsyncRequest(None, (), [])


def _storages(state: dict[str, Any]) -> set[int]:
    """Where the memory begins that training goes on with."""
    return {
        base.data.untyped_storage().data_ptr()
        for base in nested_values(state)
        if isinstance(base, ShardedTensor | ShardedTensorFactory)
    }


def _snapshot(writer: Any, own: set[int]) -> list[Any]:
    """What this rank is to write, in memory that training doesn't touch; called while training stands still.

    `own`: see _storages. The writer has copied views in host memory already.
    """
    snapshot = []
    staged = writer.preload_tensors(writer.write_buckets)  # copies from GPU to host
    for (path, key, (objects, tensors)), (_, _, (_, live)) in zip(staged, writer.write_buckets, strict=True):
        copies = [
            (item, tensor.clone() if tensor.untyped_storage().data_ptr() in own else tensor) for item, tensor in tensors
        ]
        snapshot.append((path, key, (objects, copies)))
        live.clear()
    return snapshot


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")
