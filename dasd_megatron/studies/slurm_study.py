"""Runs the steps of a study as jobs of a Slurm cluster: one experiment, each step once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dasd_megatron.config.recipe import Recipe
from dasd_megatron.planning.costs import Costs
from dasd_megatron.slurm.absolute_paths import with_absolute_paths
from dasd_megatron.slurm.cluster_config import ClusterConfig, load_cluster
from dasd_megatron.slurm.experiment import StepJob, jobs_of
from dasd_megatron.slurm.submit import SubmitOptions, run_jobs
from dasd_megatron.steps.step import Step
from dasd_megatron.studies.study import Study, load_study, steps_of
from dasd_megatron.utils.errors import UserError


@dataclass(frozen=True)
class StudyJobs:
    """A study on a cluster.

    Attributes:
        recipe: what stands for the whole: its name, and the folder with the submission's record.
        steps: all, by the names of their folders.
        jobs: of those that aren't done.
    """

    study: Study
    cluster: ClusterConfig
    recipe: Recipe
    steps: dict[str, Step]
    jobs: list[StepJob]

    def gpu_hours(self) -> tuple[dict[str, float], list[str]]:
        """What the jobs of each arm take that no arm before has; and why some jobs' hours aren't known, which are left out."""
        found = dict.fromkeys(self.study.config.arms, 0.0)
        missing: dict[str, None] = {}
        owners = {name: run for name, (_, run) in steps_of(self.study).items()}
        costs = {run.file: Costs(run.recipe, self.cluster.gpu) for run in self.study.runs}
        for job in self.jobs:
            run = owners[job.name]
            cost = costs[run.file].of(job.step, job.resources)
            found[run.arm] += cost.gpu_hours or 0.0
            if cost.missing is not None:
                missing[cost.missing] = None
        return found, list(missing)


def jobs_of_study(path: Path, cluster_file: Path) -> StudyJobs:
    """Raises UserError where the cluster can't give what a step needs, or is reached through a tunnel."""
    cluster = load_cluster(cluster_file)
    if cluster.tunnel is not None:
        raise UserError(
            f"{cluster_file}: a study reads what its jobs wrote; start it on {cluster.tunnel.host} itself, without tunnel"
        )
    study = load_study(path, lambda recipe: with_absolute_paths(recipe, cluster))
    first, folder = study.runs[0].recipe, study.config.study_dir.absolute().resolve()
    recipe = first.model_copy(update={"name": study.config.name, "run_dir": folder})
    found = steps_of(study)
    steps = {name: step for name, (step, _) in found.items()}
    jobs = jobs_of(recipe, steps, cluster, {name: (run.recipe, run.file) for name, (_, run) in found.items()})
    return StudyJobs(study, cluster, recipe, steps, jobs)


def run_study_on_slurm(made: StudyJobs, options: SubmitOptions) -> int:
    """Submits what isn't done, or follows it, and publishes each run that is done. Returns the exit code."""
    for run in made.study.runs:
        run.write_recipe()
    code = run_jobs(made.recipe, made.steps, made.steps, made.jobs, made.cluster, options) if made.jobs else 0
    if not options.detach:
        for run in made.study.runs:
            if run.done:
                run.publish()
    return code


def plan_lines(made: StudyJobs) -> Iterator[str]:
    """GPU-hours by arm."""
    hours, missing = made.gpu_hours()
    yield "GPU-hours of what isn't done, each step counted for the first arm that has it: " + ", ".join(
        f"{arm} {of_arm:,.1f}" for arm, of_arm in hours.items()
    )
    yield f"{len(made.jobs):,} jobs, {sum(hours.values()):,.1f} GPU-hours"
    if missing:
        yield "the sums leave out what is unknown:"
        yield from (f"  {reason}" for reason in missing)
