"""Runs one step of a recipe in this process, or as one of its replicas or ranks.

python -m dasd_megatron.runtime.run_step RECIPE STEP [key=value ...] [--replica] [--attempt NAME]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dasd_megatron import versions
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps, find_step
from dasd_megatron.runtime.filter_preview import FilterPreview
from dasd_megatron.runtime.git_source import source_of_this_code
from dasd_megatron.runtime.machine import machine_facts
from dasd_megatron.runtime.shard_queue import LeasedShards, run_shards
from dasd_megatron.steps.step import POLL, Ranks, ShardedStepKind, Step, StepContext
from dasd_megatron.utils.caches import use_writable_caches
from dasd_megatron.utils.child_process import die_with_launcher
from dasd_megatron.utils.errors import Stopped, UserError
from dasd_megatron.utils.files import REFUSED, disk_error, write_atomically
from dasd_megatron.utils.lease import hold
from dasd_megatron.utils.process_group import exit_at_once

# This module, as it is started.
RUN_STEP = "dasd_megatron.runtime.run_step"
# Seconds to wait for a process that holds the step's lease and is just ending.
PATIENCE = 10.0
# Seconds that other ranks wait with an error. Mostly all have the same one: rank 0 says it, and its end ends them. A rank that
# ended before would have torchrun end rank 0 unheard; one that is still there after them has an error of its own.
RANK_0_FIRST = 10.0
# In a step's folder: the attempt of a job that works on it.
ATTEMPT = ".attempt"


def run_step(
    step: Step,
    command: Sequence[str],
    attempt: str | None = None,
    preview: FilterPreview | None = None,
    shared: bool = False,
) -> None:
    """Runs `step` to its end; a step that is done already is left alone.

    `command` is the command line (after the interpreter) that starts a replica of this step. With an `attempt`, replicas on
    other machines wait until this process has the step's lease, and this one waits for a holder that a lost node left. It also
    waits where artifacts are `shared` with other runs, which may be making this one.
    """
    if step.done:
        print(f"{step.name}: done already ({step.folder})", file=sys.stderr)
        return
    context = _context(step)
    if int(os.environ.get("RANK", "0")) != 0:  # ranks of a training step: rank 0 alone holds the lease and finishes
        step.kind.run(context)
        return
    busy = f"{step.folder}: another process is running this step; wait for it, or stop it"
    with hold(step.folder / ".lock", busy, math.inf if shared or attempt is not None else PATIENCE):
        if step.done:  # by the holder that was waited for
            return
        context.output.clear_leftovers()
        if attempt is not None:
            write_atomically(step.folder / ATTEMPT, lambda file: file.write(attempt.encode()))
        start = time.monotonic()
        facts = _run_kind(step, context, command, preview)
        context.output.finish(seconds=round(time.monotonic() - start, 2), machine=machine_facts(), **facts)


def _run_kind(
    step: Step, context: StepContext[Any], command: Sequence[str], preview: FilterPreview | None
) -> dict[str, Any]:
    if isinstance(step.kind, ShardedStepKind):
        return run_shards(step.kind, context, command, preview)
    return step.kind.run(context)


def run_replica(step: Step, attempt: str | None = None) -> None:
    """Works on shards that no other replica works on, until none is left."""
    context = _context(step)
    while attempt is not None and not _has_begun(step, attempt):
        if step.done:
            return
        time.sleep(POLL)
    assert isinstance(step.kind, ShardedStepKind)
    step.kind.do_shards(context, LeasedShards(step.kind, context))


def _has_begun(step: Step, attempt: str) -> bool:
    try:
        return (step.folder / ATTEMPT).read_text() == attempt
    except OSError:
        return False


def _context(step: Step) -> StepContext[Any]:
    for name, source in step.inputs.items():
        if isinstance(source, Step) and not source.done:
            raise UserError(f"{step.name} needs {name} of the step {source.name}, which isn't finished: run that first")
    inputs = {
        name: step.input_path(name) for name, source in step.inputs.items() if isinstance(source, Step) or source.path
    }
    description = {
        "step": step.name,
        "kind": step.kind.name,
        "key": step.key,
        "config": step.config.result_settings(),
        "inputs": {
            name: {"path": str(inputs.get(name, "")), "key": source.key} for name, source in step.inputs.items()
        },
        "versions": versions(),
        "source": source_of_this_code(),
    }
    return StepContext(step.name, step.config, inputs, ArtifactWriter(step.folder, description))


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
        recipe = load_recipe(args.recipe, args.overrides)
        steps = build_steps(recipe)
        step = find_step(steps, args.step, args.recipe)
        # Before torch is imported: threads beyond a process's share of the cores make small models many times slower.
        os.environ["OMP_NUM_THREADS"] = str(step.config.threads)
        # A step that has much to tokenize has a process for each core. One thread of the tokenizer's pool is half as fast again
        # as none (TOKENIZERS_PARALLELISM=false).
        os.environ["RAYON_NUM_THREADS"] = "1"
        os.environ.update(step.kind.environment(step.config))
        use_writable_caches(os.environ)
        if args.replica:
            run_replica(step, args.attempt)
        else:
            command = ["-m", RUN_STEP, str(args.recipe), args.step, *args.overrides]
            shared = recipe.artifacts is not None
            run_step(step, command, args.attempt, FilterPreview.of(step, steps.values()), shared)
        if not isinstance(step.processes, Ranks):
            exit_at_once()  # all is on disk; taking an engine down in order costs seconds
    except UserError as error:
        if os.environ.get("RANK", "0") != "0":
            time.sleep(RANK_0_FIRST)
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
