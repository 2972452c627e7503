"""Submission of a run to Slurm: checks, submits and follows."""

from __future__ import annotations

import getpass
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.pipeline.graph import build_steps, find_step
from dasd_megatron.report.summary_table import print_summary
from dasd_megatron.runtime.git_source import ROOT, Source
from dasd_megatron.runtime.publish import publish
from dasd_megatron.runtime.submission_record import Submission
from dasd_megatron.slurm.absolute_paths import with_absolute_paths
from dasd_megatron.slurm.cluster_config import ClusterConfig, load_cluster
from dasd_megatron.slurm.experiment import StepJob, build, experiment_folder, experiments_folder, job_prefix, jobs_of
from dasd_megatron.slurm.login_node import LoginNode
from dasd_megatron.slurm.monitor import monitor
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.lease import hold


@dataclass(frozen=True)
class SubmitOptions:
    """The command line of a submission.

    Attributes:
        only: names of steps; all by default.
        watch: follow the jobs that are there, submit none.
        detach: return once the jobs are submitted.
        ship_changes: ship files that differ from the commit, too.
        not_shipped: files, beside recipe and cluster file, that may differ from the commit.
    """

    recipe: Path
    overrides: Sequence[str]
    cluster: Path
    only: Sequence[str] = ()
    dry_run: bool = False
    watch: bool = False
    detach: bool = False
    ship_changes: bool = False
    not_shipped: Sequence[Path] = ()


def submit(options: SubmitOptions) -> int:
    """Submits the steps that aren't done; or prints them, or follows those submitted before. Returns the exit code."""
    cluster = load_cluster(options.cluster)
    recipe = with_absolute_paths(load_recipe(options.recipe, options.overrides), cluster)
    steps = build_steps(recipe, remote=cluster.tunnel is not None)
    chosen = chosen_steps(steps, options.only, options.recipe) if options.only else steps
    jobs = jobs_of(recipe, chosen, cluster)
    if options.dry_run:
        from dasd_megatron.slurm.dry_run import print_plan

        print_plan(recipe, chosen, jobs, cluster)
        return 0
    if not jobs:
        print("every step is done")
        if not options.only:
            publish(recipe, steps)
        return 0
    code = run_jobs(recipe, steps, chosen, jobs, cluster, options)
    if code == 0 and not (options.detach or options.watch or options.only) and cluster.tunnel is None:
        print_summary(recipe)
    return code


def run_jobs(
    recipe: Recipe,
    steps: Mapping[str, Step],
    chosen: Mapping[str, Step],
    jobs: Sequence[StepJob],
    cluster: ClusterConfig,
    options: SubmitOptions,
) -> int:
    """Submits the jobs of the `chosen` steps and follows them, or follows those submitted before. Returns the exit code.

    Args:
        recipe: by whose run folder they are known.
        steps: all that it has.
    """
    login_node = LoginNode(cluster)
    if options.watch:
        login_node.check_login()
        return monitor(login_node, recipe, chosen)
    source = _source(options)
    login_node.check_login()
    with _submitting(recipe, cluster):
        login_node.check_free(recipe, steps)
        login_node.check_jobs(jobs)
        _submit(recipe, jobs, login_node, source)
    return 0 if options.detach else monitor(login_node, recipe, chosen)


def chosen_steps(steps: Mapping[str, Step], names: Sequence[str], recipe: Path) -> dict[str, Step]:
    """The steps of these names. Raises UserError where one reads a step that is neither done nor among them."""
    wanted = {find_step(steps, name, recipe).name for name in names}
    chosen = {name: step for name, step in steps.items() if name in wanted}
    for step in chosen.values():
        for name, source in step.inputs.items():
            if isinstance(source, Step) and not (source.remote or source.done or source.name in chosen):
                raise UserError(
                    f"{step.name} needs {name} of the step {source.name}, which isn't finished: add --only {source.name}, or "
                    "submit that first"
                )
    return chosen


def _submitting(recipe: Recipe, cluster: ClusterConfig) -> AbstractContextManager[None]:
    """Holds the lock that keeps two submissions of one run folder, or one and a local run, apart."""
    busy = f"{recipe.run_dir}: another process is running or submitting this recipe; wait for it, or choose another run_dir"
    if cluster.tunnel is None:
        return hold(recipe.run_dir / ".lock", busy)
    return hold(Path(experiments_folder(cluster)) / f".{job_prefix(recipe)}lock", busy)


def _source(options: SubmitOptions) -> Source | None:
    """What will be shipped; None where this code is no checkout. Raises UserError for changes that aren't to be shipped."""
    source = Source.of(ROOT, excluding=[options.recipe, options.cluster, *options.not_shipped])
    if source is not None and not options.ship_changes:
        source.check_committed()
    return source


def _submit(recipe: Recipe, jobs: Sequence[StepJob], login_node: LoginNode, source: Source | None) -> None:
    """Submits the jobs and records them. None is left in the queue where one can't be submitted, or Ctrl-C comes between."""
    experiment = f"{recipe.name}_{time.time_ns()}"
    folder = experiment_folder(login_node.cluster, recipe, experiment)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    facts = None if source is None else source.facts
    submission = Submission(experiment, getpass.getuser(), socket.gethostname(), when, folder, facts)
    login_node.record(recipe, submission)
    built = build(recipe, jobs, login_node.cluster, experiment, ships_tree=source is not None)
    with _interruptions() as interrupted:
        try:
            with built:
                built.run(detach=True)
        except Exception as error:  # NeMo-Run has none of its own for it
            _cancel(recipe, jobs, login_node)
            sbatch = getattr(error, "result", None)
            reason = str(error if sbatch is None else sbatch.stderr).strip()
            raise UserError(f"the jobs can't be submitted: {reason}; those submitted before were cancelled") from error
    if interrupted.is_set():
        _cancel(recipe, jobs, login_node)
        raise UserError("interrupted; the jobs submitted so far were cancelled")
    ids = {job.id: _id(job.handle) for job in built.jobs}
    login_node.record(recipe, replace(submission, jobs=ids))
    print(f"shipped: {source or 'nothing; the nodes use the dasd-megatron installed there'}")
    print(f"submitted {len(ids)} jobs as {experiment}; scripts and logs: {folder}")
    print(f"  nemorun experiment status {experiment}")


@contextmanager
def _interruptions() -> Iterator[threading.Event]:
    """While open, Ctrl-C and requests to end only set the event: NeMo-Run's way to run commands swallows KeyboardInterrupt."""
    interrupted = threading.Event()

    def note(number: int, frame: object) -> None:
        print("interrupted; cancelling what is submitted so far", file=sys.stderr, flush=True)
        interrupted.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield interrupted
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _cancel(recipe: Recipe, jobs: Sequence[StepJob], login_node: LoginNode) -> None:
    """Ends what a submission has put into the queue: nothing else of the run was there before."""
    names = [job_prefix(recipe) + job.name for job in jobs]
    login_node.slurm.cancel([job.id for job in login_node.slurm.active(names)])


def _id(handle: str) -> str:
    """Slurm's job id in NeMo-Run's handle of a job: slurm_tunnel://TITLE/ID/master/0."""
    return handle.partition("://")[2].split("/")[1]
