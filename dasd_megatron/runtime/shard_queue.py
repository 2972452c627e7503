"""Shards of a step, shared out among processes on any number of nodes: a claim is a lease, which ends with its holder."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from dasd_megatron.runtime.replicas import replica_count, start_replicas
from dasd_megatron.steps.step import Replicas, ShardedStepKind, StepContext
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.lease import try_lease
from dasd_megatron.utils.progress import Progress

# Seconds between looks at how far replicas have come.
POLL, SLOWEST_POLL = 0.2, 5.0


def run_shards(kind: ShardedStepKind[Any], context: StepContext[Any], command: Sequence[str]) -> dict[str, Any]:
    """Does every shard that is left, here or in replicas; returns facts for the manifest. `command` starts a replica."""
    count, pending = kind.shard_count(context), len(kind.pending(context))
    processes = kind.processes(context.config)
    replicas = 1
    if isinstance(processes, Replicas):
        replicas = min(replica_count(processes), pending, kind.useful_processes(context))
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
    return kind.facts(context)


def work_on_shards(kind: ShardedStepKind[Any], context: StepContext[Any], progress: Progress | None = None) -> None:
    """Claims and does shards until none is left."""
    work = None
    count, wait = kind.shard_count(context), POLL
    while pending := kind.pending(context):
        idle = True
        start = random.randrange(len(pending))  # so that many processes don't all ask for the same one
        for shard in [*pending[start:], *pending[:start]]:
            claim = try_lease(context.output.claims / f"{shard:05d}")
            if claim is None:
                continue
            with claim:
                if not context.output.has_shard(kind.table, shard):
                    work = work or kind.open(context)
                    kind.write(context, work, shard, claim.is_held)  # whoever took it over writes the same
            idle, wait = False, POLL
            if progress is not None:
                progress.update(count - len(kind.pending(context)))
        if idle:  # others are at work on what is left; should one die, its shard is free again
            time.sleep(wait)
            wait = min(2 * wait, SLOWEST_POLL)


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
