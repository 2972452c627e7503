"""What each step of a run will cost, before it runs: tokens, GPU-hours, storage. No torch.

Each step kind says what it makes and how long that takes; which shares of memory bandwidth (MBU) and FLOP/s (MFU) GPUs reach is
an assumption: the recipe's `expected` section. Storage is estimated as compressed.
"""

from __future__ import annotations

from dataclasses import replace

from dasd_megatron.config.gpu_specs import GpuName
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.planning.estimates import Estimates
from dasd_megatron.planning.job_resources import JobResources
from dasd_megatron.steps.cost_estimate import Cost, Unknown
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError


class Costs:
    """Costs of a recipe's steps on GPUs of one kind."""

    def __init__(self, recipe: Recipe, gpu: GpuName) -> None:
        self._gpu = gpu
        self._estimates = Estimates(recipe)

    def of(self, step: Step, resources: JobResources) -> Cost:
        """The cost of one step, as a job with these resources."""
        inputs = self._estimates.of(step)
        try:
            cost = step.kind.cost(step.config, inputs)
        except (Unknown, UserError) as problem:
            return Cost(missing=str(problem))
        processes, gpus = resources.nodes * resources.processes_per_node, resources.nodes * resources.gpus_per_node
        try:
            hours = step.kind.hours(step.config, inputs, self._gpu if gpus else None, processes)
        except (Unknown, UserError) as problem:
            return replace(cost, missing=str(problem))
        return replace(cost, hours=hours, gpu_hours=hours * gpus if hours is not None and gpus else None)
