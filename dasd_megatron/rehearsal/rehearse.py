"""Rehearses a run: every step of its recipe on little data, with worst-case packs, a kill, and a probe of each engine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dasd_megatron.artifacts.training_files import KILLED
from dasd_megatron.config.load import load_recipe, recipe_text
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.rehearsal.engine_roles import engines_of
from dasd_megatron.rehearsal.machines import Machines, ThisMachine
from dasd_megatron.rehearsal.measurements import measurements
from dasd_megatron.rehearsal.rehearsed_recipe import folder_of_rehearsal, rehearsed
from dasd_megatron.rehearsal.verdict import print_verdict
from dasd_megatron.runtime.local_runner import run_one
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import write_atomically, write_json
from dasd_megatron.utils.lease import hold

if TYPE_CHECKING:
    from dasd_megatron.slurm.submit import SubmitOptions

# In the rehearsal's run folder: its recipe, and the seconds of its steps with the start of their processes.
RECIPE, SECONDS = "recipe.yaml", "seconds.json"


def rehearse_here(path: Path, overrides: Sequence[str]) -> int:
    """Rehearses on this machine. Returns the exit code."""
    recipe = load_recipe(path, overrides)
    machines = ThisMachine()
    file, own = _prepared(recipe, machines)
    steps = build_steps(own)
    busy = f"{own.run_dir}: another process is rehearsing this recipe; wait for it"
    with hold(own.run_dir / ".lock", busy):
        try:
            walls = _run_all(file, steps)
        except UserError as error:  # the step has said what is wrong
            print(f"verdict: {error}", file=sys.stderr)
            return 2
    return print_verdict(recipe, measurements(own, steps, walls), machines)


def rehearse_on_slurm(options: SubmitOptions) -> int:
    """Rehearses with jobs on a cluster. Returns the exit code."""
    from dasd_megatron.rehearsal.machines import ClusterNodes
    from dasd_megatron.slurm.cluster_config import load_cluster
    from dasd_megatron.slurm.submit import submit, with_absolute_paths

    cluster = load_cluster(options.cluster)
    if cluster.tunnel is not None:
        raise UserError(
            f"{options.cluster}: a rehearsal reads what its jobs wrote; start it on {cluster.tunnel.host} itself, without tunnel"
        )
    recipe = with_absolute_paths(load_recipe(options.recipe, options.overrides), cluster)
    machines = ClusterNodes(recipe, cluster)
    file, own = _prepared(recipe, machines)
    code = submit(replace(options, recipe=file, overrides=()))
    if code:
        print("verdict: change what is said above, and run the same command again", file=sys.stderr)
        return code
    return print_verdict(recipe, measurements(own, build_steps(own), {}), machines)


def _prepared(recipe: Recipe, machines: Machines) -> tuple[Path, Recipe]:
    """Writes the rehearsal's recipe into its run folder."""
    steps = build_steps(recipe)
    own = rehearsed(recipe, engines_of(steps, machines.processes))
    build_steps(own)  # what it finds wrong, it says before anything is written
    file = folder_of_rehearsal(recipe.run_dir) / RECIPE
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, lambda out: out.write(recipe_text(own).encode()))
    return file, load_recipe(file)


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
        walls[step.name] = _timed(step, file)
        write_json(record, walls)
        print(f"{label}: {walls[step.name]:.1f} s", flush=True)
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
