"""Rehearses a run: every step of its recipe on little data, with worst-case packs, a kill, and a probe of each engine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dasd_megatron.artifacts.training_files import KILLED
from dasd_megatron.config.load import load_recipe, recipe_text
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.rehearsal.engine_roles import widest_steps
from dasd_megatron.rehearsal.machines import ClusterNodes, Machines, ThisMachine
from dasd_megatron.rehearsal.measurements import measurements
from dasd_megatron.rehearsal.rehearsed_recipe import rehearsed
from dasd_megatron.rehearsal.run_needs import run_needs
from dasd_megatron.rehearsal.verdict import print_verdict
from dasd_megatron.runtime.local_runner import check_not_on_a_cluster, run_one
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import write_atomically, write_json
from dasd_megatron.utils.lease import hold

if TYPE_CHECKING:
    from dasd_megatron.slurm.submit import SubmitOptions

# In the rehearsal's run folder: its recipe; the seconds of its steps, by their folders, with the start of their processes.
RECIPE, SECONDS = "recipe.yaml", "seconds.json"
INTERRUPTED = 130


def rehearse_here(path: Path, overrides: Sequence[str]) -> int:
    """Rehearses on this machine. Returns the exit code."""
    recipe = load_recipe(path, overrides)
    machines = ThisMachine.found()
    own = recipe_of_rehearsal(recipe, machines)
    with _alone(own):
        check_not_on_a_cluster(own.run_dir)
        steps = build_steps(own)
        try:
            walls = _run_all(_written(own), steps)
        except UserError as error:  # the step has said what is wrong
            print(f"verdict: {error}", file=sys.stderr)
            return 2
    return print_verdict(recipe, measurements(own, steps, walls), machines)


def rehearse_on_slurm(options: SubmitOptions) -> int:
    """Rehearses with jobs on a cluster, or follows those that were submitted. Returns the exit code."""
    from dasd_megatron.slurm.absolute_paths import with_absolute_paths
    from dasd_megatron.slurm.cluster_config import load_cluster
    from dasd_megatron.slurm.submit import submit

    cluster = load_cluster(options.cluster)
    if cluster.tunnel is not None:
        raise UserError(
            f"{options.cluster}: a rehearsal reads what its jobs wrote; start it on {cluster.tunnel.host} itself, without tunnel"
        )
    recipe = with_absolute_paths(load_recipe(options.recipe, options.overrides), cluster)
    machines = ClusterNodes(recipe, cluster)
    own = recipe_of_rehearsal(recipe, machines)
    with _alone(own):
        file = _written(own)
        code = submit(replace(options, recipe=file, overrides=(), not_shipped=(options.recipe,)))
    if code:
        if code != INTERRUPTED:
            print("verdict: change what is said above, and run the same command again", file=sys.stderr)
        return code
    return print_verdict(recipe, measurements(own, build_steps(own), {}), machines)


def recipe_of_rehearsal(recipe: Recipe, machines: Machines) -> Recipe:
    """Raises UserError for what is wrong with the run's own."""
    steps = build_steps(recipe)
    widest = widest_steps(steps, machines.processes)
    return rehearsed(recipe, run_needs(recipe, steps, widest, machines), steps, widest)


def _alone(recipe: Recipe) -> AbstractContextManager[None]:
    """Keeps two rehearsals of one run apart."""
    return hold(recipe.run_dir / ".rehearsal", f"{recipe.run_dir}: another process is rehearsing this run; wait for it")


def _written(recipe: Recipe) -> Path:
    """The recipe as a file of its run folder, which its steps read."""
    file = recipe.run_dir / RECIPE
    write_atomically(file, lambda out: out.write(recipe_text(recipe).encode()))
    return file


def _run_all(file: Path, steps: Mapping[str, Step]) -> dict[str, float]:
    """Runs every step that isn't done. Returns the seconds that each took, now or before, with the start of its processes."""
    record = file.with_name(SECONDS)
    walls: dict[str, float] = json.loads(record.read_text()) if record.is_file() else {}
    for number, step in enumerate(steps.values(), 1):
        label = f"[{number}/{len(steps)}] {step.name}"
        if step.done:
            print(f"{label}: done before", flush=True)
            continue
        print(label, flush=True)
        walls[step.folder.name] = _timed(step, file)
        write_json(record, walls)
        print(f"{label}: {walls[step.folder.name]:.1f} s", flush=True)
    return walls


def _timed(step: Step, file: Path) -> float:
    """Seconds of the attempt that ended well; a stage that was killed on purpose is started again."""
    killed_before = (step.folder / KILLED).exists()
    start = time.monotonic()
    try:
        run_one(step, file, [])
    except UserError:
        if killed_before or not (step.folder / KILLED).exists():
            raise
        print(f"{step.name}: started again", file=sys.stderr, flush=True)
        start = time.monotonic()
        run_one(step, file, [])
    return time.monotonic() - start
