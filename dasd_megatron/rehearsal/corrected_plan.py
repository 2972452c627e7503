"""What the run itself will take, by what its rehearsal has measured. No torch.

Of each step the rehearsal gives the time that doesn't depend on its amount of work (starting processes, loading models), and a
speed; how much work there is, the recipe says, with the lengths that were seen. Between the lengths that an engine was probed
at and those of the run, its speed changes as memory bandwidth has it (decoding_speed.py), where the GPU is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dasd_megatron.config.expected import ExpectedConfig
from dasd_megatron.config.gpu_specs import GPU_SPECS, GpuName
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.config.stages import StageConfig
from dasd_megatron.planning.estimates import Estimates, StepEstimates
from dasd_megatron.rehearsal.engine_roles import role_of
from dasd_megatron.rehearsal.machines import Machines
from dasd_megatron.rehearsal.measurements import EngineSpeed, Measurements
from dasd_megatron.sampling.decoding_speed import tokens_per_second, weight_bytes
from dasd_megatron.sampling.engine_step import EngineHours, EngineStepKind
from dasd_megatron.steps.cost_estimate import Documents, Unknown, model_shape
from dasd_megatron.steps.step import Step
from dasd_megatron.training.train_step_config import TrainConfig
from dasd_megatron.utils.errors import UserError


@dataclass(frozen=True)
class StepPlan:
    """Of one step of the run.

    Attributes:
        startup: seconds that don't depend on its work.
        decoding, computing: seconds that engines decode, and that something is computed: scores, a stage's steps.
        assumed: the same by what the recipe expects of GPUs; None where that isn't known.
        gpus: that its job holds.
        unknown: what has to be known for the rest.
    """

    startup: float = 0.0
    decoding: float = 0.0
    computing: float = 0.0
    assumed: EngineHours | None = None
    gpus: int = 0
    unknown: str | None = None

    @property
    def seconds(self) -> float:
        """From its start to its end."""
        return self.startup + self.decoding + self.computing


def with_seen_lengths(recipe: Recipe, measured: Measurements) -> Recipe:
    """The run's recipe with what the rehearsal has seen of lengths, where it says nothing of them itself.

    What it says may come from many more responses than the rehearsal's.
    """
    lengths, given = measured.lengths, recipe.expected.model_fields_set
    stages = [
        stage.model_copy(update={"expected_response_tokens": lengths.responses[stage.name]})
        if stage.name in lengths.responses and "response_tokens" not in given and _has_no_length(stage)
        else stage
        for stage in recipe.stages
    ]
    seen = {"prompt_tokens": lengths.prompt, "length_spread": lengths.spread, "response_tokens": mean_length(measured)}
    known = {name: value for name, value in seen.items() if value is not None and name not in given}
    return recipe.model_copy(update={"stages": stages, "expected": recipe.expected.model_copy(update=known)})


def _has_no_length(stage: StageConfig) -> bool:
    return stage.kind == "sampled" and stage.expected_response_tokens is None


def mean_length(measured: Measurements) -> int | None:
    """Of all stages' responses; None where there weren't enough."""
    lengths = list(measured.lengths.responses.values())
    return round(sum(lengths) / len(lengths)) if lengths else None


class CorrectedPlan:
    """Of a run, by the measurements of its rehearsal."""

    def __init__(self, recipe: Recipe, measured: Measurements, machines: Machines) -> None:
        """`recipe`: the run's, with_seen_lengths."""
        self._recipe, self._measured, self._machines = recipe, measured, machines
        self._estimates = Estimates(recipe)

    def of(self, steps: Mapping[str, Step]) -> dict[str, StepPlan]:
        """Of each step."""
        return {name: self._of(step) for name, step in steps.items()}

    def _of(self, step: Step) -> StepPlan:
        inputs, gpus = self._estimates.of(step), self._machines.gpus(step)
        startup = self._measured.seconds.get(step.name, 0.0)
        try:
            assumed = self._assumed(step, inputs)
            if isinstance(step.kind, EngineStepKind):
                return self._engine_step(step, inputs, assumed, gpus)
            if isinstance(step.config, TrainConfig):
                return self._training(step.config, inputs, assumed, gpus)
        except (Unknown, UserError) as problem:
            return StepPlan(startup, gpus=gpus, unknown=str(problem))
        return StepPlan(startup, computing=3600 * assumed.computing if assumed else 0.0, gpus=gpus)

    def _assumed(self, step: Step, inputs: StepEstimates) -> EngineHours | None:
        """By the recipe's `expected`, which a dry run plans with."""
        gpu, processes = self._machines.gpu, self._machines.processes(step)
        if isinstance(step.kind, EngineStepKind):
            if gpu is None or step.kind.runs_elsewhere(step.config):
                return None
            return step.kind.hours_by_limit(step.config, inputs, gpu, processes)
        hours = step.kind.hours(step.config, inputs, gpu, processes)
        return None if hours is None else EngineHours(computing=hours)

    def _speed(self, step: Step) -> EngineSpeed:
        role = role_of(step)
        speed = None if role is None else self._measured.engines.get(role)
        if speed is None:
            raise Unknown(f"how fast the engine of {step.name} is")
        return speed

    def _engine_step(self, step: Step, inputs: StepEstimates, assumed: EngineHours | None, gpus: int) -> StepPlan:
        if step.kind.name == "turns":
            raise Unknown("how fast two engines write in turns (mixed_policy.method=turns)")
        kind, speed = step.kind, self._speed(step)
        assert isinstance(kind, EngineStepKind)
        work = kind.work(step.config, inputs)
        engines = min(self._machines.processes(step), inputs.own_shards())
        decoding = computing = 0.0
        if work.decoded is not None:
            rate = speed.decoded * self._of_other_length(step, inputs, speed, work.decoded, engines)
            decoding = work.decoded.count * work.decoded.response / (engines * rate)
        if work.scored is not None:
            computing = work.scored.tokens / (engines * speed.scored)
        return StepPlan(speed.startup, decoding, computing, assumed, gpus)

    def _of_other_length(
        self, step: Step, inputs: StepEstimates, speed: EngineSpeed, documents: Documents, engines: int
    ) -> float:
        """Speed at the lengths of the run, by that at the lengths of the probe; 1 where nothing is known of the GPUs."""
        gpu: GpuName | None = self._machines.gpu
        engine: EngineConfig = step.config.engine  # type: ignore[attr-defined]
        if gpu is None or engine.runs_elsewhere:
            return 1.0
        folder = inputs.model_folder("model")
        shape = model_shape(folder)
        weights = weight_bytes(folder, shape, engine)

        def rate(length: float, sequences: float) -> float:
            return tokens_per_second(shape, weights, engine, GPU_SPECS[gpu], length, sequences, mbu=1.0)

        probed = rate(speed.length, speed.sequences)
        return rate(documents.length_while_written, documents.count / engines) / probed

    def _training(self, config: TrainConfig, inputs: StepEstimates, assumed: EngineHours | None, gpus: int) -> StepPlan:
        speed = self._measured.training
        if speed is None:
            raise Unknown("how fast a stage trains")
        packs, training = inputs.packs("packs"), config.training
        flops = packs.flops(inputs.student_shape(), config.isolate_documents)
        flops *= training.total_steps(packs.count) * training.global_batch / packs.count
        return StepPlan(speed.startup, computing=flops / speed.flops, assumed=assumed, gpus=gpus)


def from_start_to_end(steps: Mapping[str, Step], plans: Mapping[str, StepPlan], side_by_side: bool) -> float:
    """Seconds of the whole run: of one step after another, or where each starts once what it reads is there."""
    if not side_by_side:
        return sum(plan.seconds for plan in plans.values())
    ends: dict[str, float] = {}
    for name, step in steps.items():
        read = [source.name for source in step.inputs.values() if isinstance(source, Step)]
        ends[name] = max((ends[source] for source in read), default=0.0) + plans[name].seconds
    return max(ends.values(), default=0.0)


def corrected_expectations(recipe: Recipe, plans: Mapping[str, StepPlan]) -> ExpectedConfig:
    """The recipe's `expected` section, so that a dry run gives these hours. `recipe`: the run's, with_seen_lengths."""
    expected, changes = recipe.expected, dict[str, float]()
    on_gpus = [(plan, plan.assumed) for plan in plans.values() if plan.assumed is not None and plan.gpus]
    for name, limit in (("mbu", "decoding"), ("mfu", "computing")):
        taken = sum(getattr(plan, limit) for plan, _ in on_gpus)
        if taken:
            times = 3600 * sum(getattr(assumed, limit) for _, assumed in on_gpus) / taken
            changes[name] = float(f"{min(1.0, getattr(expected, name) * times):.3g}")
    return expected.model_copy(update=changes)
