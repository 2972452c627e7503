"""Shards of a step, shared out among processes on any number of nodes: a claim is a lease, which ends with its holder."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dasd_megatron.runtime.filter_preview import FilterPreview
from dasd_megatron.runtime.replicas import replica_count, start_replicas
from dasd_megatron.steps.step import POLL, Claim, Replicas, ShardedStepKind, StepContext
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.lease import Lease, try_lease
from dasd_megatron.utils.progress import Progress
from dasd_megatron.utils.repeating import repeating

# Most seconds between looks for a shard, where others work on all that are left.
SLOWEST_POLL = 5.0
# Seconds between looks at how far the step is.
LOOK = 1.0


def run_shards(
    kind: ShardedStepKind[Any],
    context: StepContext[Any],
    command: Sequence[str],
    preview: FilterPreview | None = None,
) -> dict[str, Any]:
    """Does every shard that is left, here or in replicas; returns facts for the manifest. `command` starts a replica."""
    count, pending = kind.shard_count(context), len(kind.pending(context))
    processes = kind.processes(context.config)
    replicas = 1
    if isinstance(processes, Replicas):
        replicas = min(replica_count(processes), pending, kind.useful_processes(context))
    if pending:
        with _shown(kind, context, preview):
            if isinstance(processes, Replicas) and replicas > 1:
                for process in start_replicas(replicas, processes.gpus_each, [*command, "--replica"]):
                    process.wait()  # one that dies frees its shards for the others
            else:
                kind.do_shards(context, LeasedShards(kind, context))
    missing = kind.pending(context)
    if missing:
        raise UserError(
            f"{context.name}: {len(missing)} of {count} shards are missing, since replicas failed (see above); run again to "
            "resume"
        )
    return kind.facts(context)


@dataclass
class LeasedShard:
    """A claim that is a lease."""

    shard: int
    lease: Lease
    held: set[int]

    def is_held(self) -> bool:
        """Whether nobody has taken it over while this process stood still."""
        return self.lease.is_held()

    def close(self) -> None:
        """Gives it back."""
        self.held.discard(self.shard)
        self.lease.close()


class LeasedShards:
    """The claims of one of several processes."""

    def __init__(self, kind: ShardedStepKind[Any], context: StepContext[Any]) -> None:
        self._kind, self._context = kind, context
        self._held: set[int] = set()
        self._exhausted = False
        # No look for a shard before then, on the monotonic clock, and the wait after a look in vain.
        self._next, self._wait = 0.0, POLL

    def take(self) -> Claim | None:
        """A shard that is left and that nobody works on; None where there was none a moment ago."""
        if time.monotonic() < self._next:
            return None
        context = self._context
        pending = [shard for shard in self._kind.pending(context) if shard not in self._held]
        self._exhausted = not pending
        start = random.randrange(len(pending) or 1)  # so that many processes don't all ask for the same one
        for shard in [*pending[start:], *pending[:start]]:
            lease = try_lease(context.output.claims / f"{shard:05d}")
            if lease is None:
                continue
            if context.output.has_shard(self._kind.table, shard):
                lease.close()
                continue
            self._wait = POLL
            self._held.add(shard)
            return LeasedShard(shard, lease, self._held)
        self._next, self._wait = time.monotonic() + self._wait, min(2 * self._wait, SLOWEST_POLL)
        return None

    def exhausted(self) -> bool:
        """Whether every shard was done, or claimed here, at the last look."""
        return self._exhausted


@contextlib.contextmanager
def _shown(kind: ShardedStepKind[Any], context: StepContext[Any], preview: FilterPreview | None) -> Iterator[None]:
    """Shows how far the step is, from a thread."""
    watch = kind.watch(context)
    if preview is not None:
        preview.open()
    began = watch()
    with Progress(context.name, began.total, kind.unit, began.done) as progress:

        def look() -> None:
            with contextlib.suppress(OSError, pa.ArrowException):  # whoever needs the files will say it
                standing = watch()
                note = standing.note if preview is None else f"{standing.note} {preview.note()}"
                progress.update(standing.done, note.strip(), standing.total)

        with repeating(look, LOOK, "progress"):
            yield
        look()
