"""The steps that only a rehearsal has: worst-case packs in place of a stage's own, and a probe of each engine."""

from __future__ import annotations

from dasd_megatron.config.rehearsal import RehearsalConfig
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.config.stages import StageConfig
from dasd_megatron.curation.worst_case_packs import WorstCasePacksConfig
from dasd_megatron.pipeline.step_builder import Source, StepBuilder
from dasd_megatron.sampling.engine_probe import ProbeConfig
from dasd_megatron.steps.step import Step

# Kinds of steps with problems that an engine can be asked, the most typical first.
PROBLEMS = ("prompts", "response_prompts", "benchmark")


class RehearsalSteps(StepBuilder):
    """Adds them."""

    def worst_case_packs(self, stage: StageConfig, rehearsal: RehearsalConfig) -> Step:
        """What the stage trains on in place of its own packs, of which there are too few to tell anything."""
        recipe = self.recipe
        training = stage.training.applied_to(recipe.training)
        config = WorstCasePacksConfig(
            threads=recipe.launch.threads,
            context_length=recipe.packing.context_length,
            global_batch=training.global_batch,
            steps=training.total_steps(0),
            seed=recipe.seed,
            setting=rehearsal.setting,
        )
        return self.add(f"worst_case_packs_{stage.name}", "worst_case_packs", config, {"model": self.student})

    def kill_after(self, stage: StageConfig) -> int | None:
        """The step after the stage's first checkpoint, in a rehearsal; None where there is no such step."""
        training = stage.training.applied_to(self.recipe.training)
        first = training.save_every + 1
        return first if self.recipe.rehearsal is not None and first < (training.steps or 0) else None

    def may_be_empty(self, stage: StageConfig) -> bool:
        """Whether nothing may be left of a stage's data: in a rehearsal, where a student begins responses that hasn't learned how
        they look."""
        return self.recipe.rehearsal is not None and stage.kind == "mixed_policy"

    def add_probes(self, rehearsal: RehearsalConfig) -> None:
        """One for each engine that the run's steps use."""
        problems = next(step for kind in PROBLEMS for step in self.steps.values() if step.kind.name == kind)
        wanted = dict(rehearsal.longest)
        together = self.scorer_is_student and {"scorer", "student"} <= wanted.keys()
        if together:
            wanted["student"] = max(wanted["student"], wanted.pop("scorer"))
        for role, longest in wanted.items():
            inputs: dict[str, Source] = {"prompts": problems, "model": self.student}
            if role == "teacher":
                inputs["model"] = self.teacher
            if role == "scorer" or (role == "student" and together):
                inputs["responses"] = next(step for step in self.steps.values() if step.kind.name == "filter")
            self._add_probe(role, longest, rehearsal, inputs)

    def _add_probe(self, role: EngineRole, longest: int, rehearsal: RehearsalConfig, inputs: dict[str, Source]) -> None:
        config = ProbeConfig(
            **self.engine(role),
            role=role,
            model=self.recipe.teacher if role == "teacher" else self.recipe.student,
            engines=rehearsal.engines[role],
            longest=longest,
            typical=rehearsal.typical.get(role),
            scores=role in rehearsal.scores or "responses" in inputs,
            setting=rehearsal.setting,
            seed=self.recipe.seed,
        )
        self.add(f"probe_{role}", "probe", config, inputs)

    @property
    def scorer_is_student(self) -> bool:
        """Whether one engine does both, with the same settings."""
        return self.recipe.engine.of("scorer") == self.recipe.engine.of("student")
