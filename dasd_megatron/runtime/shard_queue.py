"""Shards of a step, shared out among processes: a claim is a lock on a file, so it ends with the process that holds it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from dasd_megatron.runtime.replicas import replica_count, start_replicas
from dasd_megatron.steps.step import Replicas, ShardedStepKind, StepContext
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.file_lock import try_lock
from dasd_megatron.utils.progress import Progress

# Seconds between looks at how far replicas have come.
POLL = 0.2


def run_shards(kind: ShardedStepKind[Any], context: StepContext[Any], command: Sequence[str]) -> dict[str, Any]:
    """Does every shard that is left, here or in replicas; returns facts for the manifest. `command` starts a replica."""
    count, pending = kind.shard_count(context), len(kind.pending(context))
    processes = kind.processes(context.config)
    replicas = min(replica_count(processes), pending) if isinstance(processes, Replicas) else 1
    with Progress(context.name, count, "shards", count - pending) as progress:
        if isinstance(processes, Replicas) and replicas > 1:
            _run_replicas(replicas, processes.gpus_each, kind, context, command, progress)
        elif pending:
            work_on_shards(kind, context, progress)
    missing = kind.pending(context)
    if missing:
        raise UserError(
            f"{context.name}: {len(missing)} of {count} shards are missing, since replicas failed (see above); run again to "
            "resume"
        )
    return kind.summarize(context)


def work_on_shards(kind: ShardedStepKind[Any], context: StepContext[Any], progress: Progress | None = None) -> None:
    """Claims and does shards until none is left."""
    work = None
    count = kind.shard_count(context)
    while pending := kind.pending(context):
        idle = True
        for shard in pending:
            claim = try_lock(context.output.path / f".claim-{shard:05d}")
            if claim is None:
                continue
            with claim:
                if not context.output.has_shard(kind.table, shard):
                    work = work or kind.open(context)
                    for table, content in work(shard).items():  # the step's own table comes last
                        context.output.write_shard(table, shard, content)
            idle = False
            if progress is not None:
                progress.update(count - len(kind.pending(context)))
        if idle:  # others are at work on what is left; should one die, its shard is free again
            time.sleep(POLL)


def _run_replicas(
    replicas: int,
    gpus_each: int,
    kind: ShardedStepKind[Any],
    context: StepContext[Any],
    command: Sequence[str],
    progress: Progress,
) -> None:
    """Starts replicas and waits for all of them. One that dies frees its shard for the others."""
    processes = start_replicas(replicas, gpus_each, [*command, "--replica"])
    while any(process.poll() is None for process in processes):
        time.sleep(POLL)
        progress.update(progress.total - len(kind.pending(context)))
