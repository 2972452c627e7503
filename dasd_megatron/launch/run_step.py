"""Runs one step of a recipe in this process, or as one of its replicas or ranks.

python -m dasd_megatron.launch.run_step RECIPE STEP [key=value ...] [--replica] [--attempt NAME]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dasd_megatron import versions
from dasd_megatron.artifacts.artifact import ArtifactWriter
from dasd_megatron.artifacts.files import REFUSED, disk_error, lock, try_lock, write_atomically
from dasd_megatron.errors import Stopped, UserError
from dasd_megatron.launch.process import die_with_launcher
from dasd_megatron.launch.replicas import replica_count, start_replicas
from dasd_megatron.progress import Progress
from dasd_megatron.recipe.load import load_recipe
from dasd_megatron.recipe.steps import Step, steps_of
from dasd_megatron.source import source_of_this_code

# Seconds between looks at how far replicas have come.
POLL = 0.2
# Seconds to wait for a process that holds the step's lock and is just ending.
PATIENCE = 10.0
# In a step's folder: the attempt of a job that works on it.
ATTEMPT = ".attempt"


def find_step(steps: Mapping[str, Step], name: str, recipe: Path) -> Step:
    """The step of this name. Raises UserError naming the nearest ones."""
    import difflib

    if name not in steps:
        near = difflib.get_close_matches(name, steps, n=1)
        raise UserError(
            f"{recipe}: no step {name!r}"
            + (f"; the nearest is {near[0]!r}" if near else "")
            + f"; steps: {', '.join(steps)}"
        )
    return steps[name]


def run_step(step: Step, command: Sequence[str], attempt: str | None = None) -> None:
    """Runs `step` to its end; a step that is done already is left alone.

    `command` is the command line (after the interpreter) that starts a replica of this step. With an `attempt`, replicas on
    other machines wait until this process has the step's lock, and this one waits for a holder that a lost node left.
    """
    if step.done:
        print(f"{step.name}: done already ({step.folder})", file=sys.stderr)
        return
    context = _context(step)
    if int(os.environ.get("RANK", "0")) != 0:  # ranks of a training step: rank 0 alone holds the lock and finishes
        _implementation(step)(context)
        return
    busy = f"{step.folder}: another process is running this step; wait for it, or stop it"
    with lock(step.folder / ".lock", busy, PATIENCE if attempt is None else math.inf):
        if step.done:  # by the holder that was waited for
            return
        context.output.clear_leftovers()
        if attempt is not None:
            write_atomically(step.folder / ATTEMPT, lambda file: file.write(attempt.encode()))
        start = time.monotonic()
        implementation = _implementation(step)
        facts = (
            _run_sharded(implementation(), context, command)
            if isinstance(implementation, type)
            else implementation(context)
        )
        context.output.finish(seconds=round(time.monotonic() - start, 2), **facts)


def run_replica(step: Step, attempt: str | None = None) -> None:
    """Works on shards that no other replica works on, until none is left."""
    context = _context(step)
    while attempt is not None and not _has_begun(step, attempt):
        if step.done:
            return
        time.sleep(POLL)
    _work(_implementation(step)(), context)


def _has_begun(step: Step, attempt: str) -> bool:
    try:
        return (step.folder / ATTEMPT).read_text() == attempt
    except OSError:
        return False


def _implementation(step: Step) -> Any:
    from dasd_megatron.launch.kinds import implementation

    return implementation(step.kind)


def _context(step: Step) -> Any:
    from dasd_megatron.step import StepContext

    for name, source in step.inputs.items():
        if isinstance(source, Step) and not source.done:
            raise UserError(f"{step.name} needs {name} of the step {source.name}, which isn't finished: run that first")
    inputs = {
        name: step.input_path(name) for name, source in step.inputs.items() if isinstance(source, Step) or source.path
    }
    description = {
        "step": step.name,
        "kind": step.kind,
        "key": step.key,
        "config": step.config,
        "inputs": {
            name: {"path": str(inputs.get(name, "")), "key": source.key} for name, source in step.inputs.items()
        },
        "versions": versions(),
        "source": source_of_this_code(),
    }
    return StepContext(step.name, step.config, inputs, ArtifactWriter(step.folder, description), step.execution)


def _run_sharded(implementation: Any, context: Any, command: Sequence[str]) -> dict[str, Any]:
    count = implementation.shard_count(context)
    replicas = min(replica_count(context.execution), len(_pending(implementation, context, count)))
    with Progress(context.name, count, "shards", count - len(_pending(implementation, context, count))) as progress:
        if replicas > 1:
            _run_replicas(replicas, implementation, context, command, progress)
        elif replicas:
            _work(implementation, context, progress)
    pending = _pending(implementation, context, count)
    if pending:
        raise UserError(
            f"{context.name}: {len(pending)} of {count} shards are missing, since replicas failed (see above); run again to go on"
        )
    facts: dict[str, Any] = implementation.summarize(context)
    return facts


def _pending(implementation: Any, context: Any, count: int) -> list[int]:
    return [shard for shard in range(count) if not context.output.has_shard(implementation.table, shard)]


def _run_replicas(replicas: int, implementation: Any, context: Any, command: Sequence[str], progress: Progress) -> None:
    """Starts replicas and waits for all of them. One that dies frees its shard for the others."""
    processes = start_replicas(replicas, context.execution, [*command, "--replica"])
    while any(process.poll() is None for process in processes):
        time.sleep(POLL)
        progress.update(progress.total - len(_pending(implementation, context, progress.total)))


def _work(implementation: Any, context: Any, progress: Progress | None = None) -> None:
    """Claims and does shards until none is left. A claim is a lock, so it ends with the process that holds it."""
    work = None
    count = implementation.shard_count(context)
    while pending := _pending(implementation, context, count):
        idle = True
        for shard in pending:
            claim = try_lock(context.output.path / f".claim-{shard:05d}")
            if claim is None:
                continue
            with claim:
                if not context.output.has_shard(implementation.table, shard):
                    work = work or implementation.open(context)
                    for table, content in work(shard).items():  # the step's own table comes last
                        context.output.write_shard(table, shard, content)
            idle = False
            if progress is not None:
                progress.update(count - len(_pending(implementation, context, count)))
        if idle:  # others are at work on what is left; should one die, its shard is free again
            time.sleep(POLL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("step")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--replica", action="store_true")
    parser.add_argument("--attempt")
    args = parser.parse_args(arguments)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        die_with_launcher()
    try:
        step = find_step(steps_of(load_recipe(args.recipe, args.overrides)), args.step, args.recipe)
        # Before torch is imported: threads beyond a process's share of the cores make small models many times slower.
        os.environ["OMP_NUM_THREADS"] = str(step.execution["threads"])
        if args.replica:
            run_replica(step, args.attempt)
            sys.stderr.flush()
            os._exit(0)  # all is on disk; taking an engine down in order costs seconds
        else:
            command = ["-m", "dasd_megatron.launch.run_step", str(args.recipe), args.step, *args.overrides]
            run_step(step, command, args.attempt)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # every rank raises it
            print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except Stopped:
        return Stopped.EXIT_CODE
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        print(f"error: {disk_error(Path(error.filename or step.folder), error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
