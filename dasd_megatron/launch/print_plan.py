"""The dry run of a submission: which steps would run, their jobs' scripts, and what they are estimated to cost."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dasd_megatron.launch.cluster import Cluster
from dasd_megatron.launch.slurm import Job, build
from dasd_megatron.recipe.schema import Recipe
from dasd_megatron.recipe.steps import Step
from dasd_megatron.source import ROOT, Source

# Stands for the experiment's name, which carries the time of submission.
EXPERIMENT = "{name}_TIME"


def print_plan(recipe: Recipe, steps: Mapping[str, Step], jobs: Sequence[Job], cluster: Cluster) -> None:
    """Prints scripts as they will run, then the plan and its costs. Needs no cluster."""
    for name, script in scripts(recipe, jobs, cluster).items():
        print(f"----- {name} -----\n{script.rstrip()}\n")


def scripts(recipe: Recipe, jobs: Sequence[Job], cluster: Cluster) -> dict[str, str]:
    """The sbatch script of each job, by step."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = EXPERIMENT.format(name=recipe.name)
        built = build(recipe, jobs, cluster, experiment, Source.of(ROOT) is not None, Path(folder))
        with built:
            built.dryrun(log=False, delete_exp_dir=False)
        made = Path(folder) / "experiments" / recipe.name / experiment
        return {job.step.name: (made / f"{job.step.name}_sbatch.sh").read_text() for job in jobs}
