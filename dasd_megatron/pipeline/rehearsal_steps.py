"""The steps that only a rehearsal has: worst-case packs in place of a stage's own, and a probe of each engine."""

from __future__ import annotations

from dasd_megatron.config.rehearsal import RehearsalConfig
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.config.stages import StageConfig
from dasd_megatron.curation.worst_case_packs import WorstCasePacksConfig
from dasd_megatron.evaluation.benchmarks.benchmark import answer_settings
from dasd_megatron.evaluation.benchmarks.registry import declared_benchmark
from dasd_megatron.pipeline.step_builder import Source, StepBuilder
from dasd_megatron.sampling.engine_probe import ProbeConfig
from dasd_megatron.steps.step import Step

# Kinds of steps with problems that an engine can be asked, the most typical first.
PROBLEMS = ("prompts", "response_prompts", "benchmark")


class RehearsalSteps(StepBuilder):
    """Adds them."""

    def worst_case_packs(self, stage: StageConfig) -> Step:
        """What the stage trains on in place of its own packs, of which there are too few to tell anything."""
        recipe = self.recipe
        training = stage.training.applied_to(recipe.training)
        config = WorstCasePacksConfig(
            threads=recipe.launch.threads,
            context_length=recipe.packing.context_length,
            global_batch=training.global_batch,
            steps=training.total_steps(0),
            seed=recipe.seed,
        )
        return self.add(f"worst_case_packs_{stage.name}", "worst_case_packs", config, {"model": self.student})

    def kill_after(self, stage: StageConfig) -> int | None:
        """The step after the stage's first checkpoint, in a rehearsal; None where there is no such step."""
        training = stage.training.applied_to(self.recipe.training)
        first = training.save_every + 1
        return first if self.recipe.rehearsal is not None and first < (training.steps or 0) else None

    def add_probes(self, rehearsal: RehearsalConfig) -> None:
        """One for each engine that the recipe's steps use."""
        problems = next(step for kind in PROBLEMS for step in self.steps.values() if step.kind.name == kind)
        wanted = self._longest()
        if self.scorer_is_student and "scorer" in wanted and "student" in wanted:
            wanted["student"] = max(wanted["student"], wanted.pop("scorer"))
        for role, longest in wanted.items():
            inputs: dict[str, Source] = {"prompts": problems, "model": self.student}
            if role == "teacher":
                inputs["model"] = self.teacher
            if role == "scorer" or (self.scorer_is_student and role == "student" and self.recipe.stages):
                inputs["responses"] = next(step for step in self.steps.values() if step.kind.name == "filter")
            config = ProbeConfig(
                **self.engine(role),
                role=role,
                model=self.recipe.teacher if role == "teacher" else self.recipe.student,
                engines=rehearsal.engines[role],
                longest=longest,
                seed=self.recipe.seed,
            )
            self.add(f"probe_{role}", "probe", config, inputs)

    @property
    def scorer_is_student(self) -> bool:
        """Whether one engine does both, with the same settings."""
        return self.recipe.engine.of("scorer") == self.recipe.engine.of("student")

    def _longest(self) -> dict[EngineRole, int]:
        """Tokens of the longest sequence that each role's engine is asked for, of those that are used."""
        recipe, found = self.recipe, dict[EngineRole, int]()

        def asked(role: EngineRole, tokens: int) -> None:
            found[role] = max(found.get(role, 0), tokens)

        for stage in recipe.stages:
            if stage.kind == "mixed_policy":
                asked("teacher", recipe.sampling.max_tokens)
                asked("student", recipe.packing.context_length)
                continue
            asked("scorer", recipe.packing.context_length)
            if stage.responses is None:
                asked("teacher", recipe.sampling.max_tokens)
        for index, benchmark in enumerate(recipe.evaluation.benchmarks):
            declared = declared_benchmark(benchmark, f"evaluation.benchmarks.{index}")
            tokens = answer_settings(benchmark, declared, recipe.evaluation).max_tokens
            asked("student", tokens)
            if recipe.evaluation.teacher:
                asked("teacher", tokens)
        return found
