"""The steps that give the teacher's responses to problems: prompts -> sample, or what exists already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dasd_megatron.config.prompts import PromptSource
from dasd_megatron.config.responses import ResponseSource
from dasd_megatron.config.stages import SampledStageConfig
from dasd_megatron.pipeline.step_builder import Source, StepBuilder
from dasd_megatron.sampling.existing_responses import ResponsesConfig
from dasd_megatron.sampling.prompts import PromptsStepConfig
from dasd_megatron.sampling.response_prompts import ResponsePromptsConfig
from dasd_megatron.sampling.sample import SampleConfig
from dasd_megatron.steps.step import ExternalInput, Step


class TeacherSteps(StepBuilder):
    """Adds them. `held_out`: the steps that read problems which are never learned from, by benchmark, added first."""

    held_out: Mapping[str, Step]

    def responses(self, stage: SampledStageConfig, index: int) -> Step:
        """The step that has a stage's responses."""
        if stage.responses is not None:
            return self._existing(stage, index, stage.responses)
        return self._sampled(stage, index)

    def prompts(self, name: str, key: str, source: PromptSource, others: Mapping[str, Source], **settings: Any) -> Step:
        config = PromptsStepConfig(threads=self.recipe.launch.threads, source=source, key=key, **settings)
        return self.add(name, "prompts", config, {"source": self.file(key, source), **others})

    def _train_prompts(
        self, name: str, key: str, source: PromptSource | ResponseSource, stages: Mapping[str, SampledStageConfig]
    ) -> Step:
        """`stages`: that learn from them, by their keys in the recipe."""
        recipe = self.recipe
        # Of the student its tokenizer alone: students that share one share the teacher's responses.
        tokenizer = recipe.student.model / "tokenizer.json"
        others: dict[str, Source] = {
            **{f"held_out_{name}": step for name, step in self.held_out.items()},
            "teacher": self.teacher,
            "student": ExternalInput(tokenizer, str(tokenizer)),
        }
        wanted = {
            "filters.right_answers_only": recipe.filters.right_answers_only,
            "mixed_policy.right_answers_only": recipe.mixed_policy.right_answers_only,
        }
        budgets = {"selection.total": recipe.selection.total}
        for stage_key, stage in stages.items():
            budgets[f"{stage_key}.selection.total"] = stage.selection.applied_to(recipe.selection).total
            budgets[f"{stage_key}.prompts"] = stage.prompts
        settings = {
            "answers_wanted_by": next((setting for setting, wants in wanted.items() if wants), None),
            "budgets": {budget: list(count) for budget, count in budgets.items() if isinstance(count, dict)},
        }
        if isinstance(source, ResponseSource):
            config = ResponsePromptsConfig(threads=recipe.launch.threads, source=source, key=key, **settings)
            return self.add(f"prompts_{name}", "response_prompts", config, {**self._rows(key, source), **others})
        return self.prompts(f"prompts_{name}", key, source, others, **settings)

    def _rows(self, key: str, source: ResponseSource) -> dict[str, Source]:
        """The inputs that responses which exist already are read from."""
        inputs: dict[str, Source] = {"source": self.file(key, source)}
        if source.logprobs is not None:
            inputs["logprobs"] = self.file(f"{key}.logprobs", source.logprobs)
        return inputs

    def _existing(self, stage: SampledStageConfig, index: int, source: ResponseSource) -> Step:
        """prompts, and their responses that exist already."""
        recipe, key = self.recipe, f"stages.{index}.responses"
        prompts = self._train_prompts(stage.name, key, source, {f"stages.{index}": stage})
        config = ResponsesConfig(
            threads=recipe.launch.threads,
            model=recipe.teacher,
            source=source,
            key=key,
            temperature=stage.temperature,
            limit=stage.prompts,
            max_tokens=recipe.sampling.max_tokens,
            prompts_per_shard=recipe.sampling.prompts_per_shard,
            expected_response_tokens=stage.expected_response_tokens,
        )
        inputs: dict[str, Source] = {"prompts": prompts, "model": self.teacher, **self._rows(key, source)}
        return self.add(f"responses_{stage.name}", "responses", config, inputs)

    def _sampled(self, stage: SampledStageConfig, index: int) -> Step:
        """prompts, and the teacher's responses to them."""
        recipe = self.recipe
        if stage.source is not None:
            own = {f"stages.{index}": stage}
            prompts = self._train_prompts(stage.name, f"stages.{index}.source", stage.source, own)
        elif "prompts_train" in self.steps:
            prompts = self.steps["prompts_train"]
        else:
            users = {
                f"stages.{number}": other
                for number, other in enumerate(recipe.stages)
                if isinstance(other, SampledStageConfig) and other.source is None and other.responses is None
            }
            assert recipe.prompts.train is not None  # the recipe's own check
            prompts = self._train_prompts("train", "prompts.train", recipe.prompts.train, users)
        sampling = SampleConfig(
            **self.engine("teacher"),
            model=recipe.teacher,
            sampling=recipe.sampling,
            temperature=stage.temperature,
            seed=recipe.seed,
            limit=stage.prompts,
            expected_response_tokens=stage.expected_response_tokens,
        )
        return self.add(f"sample_{stage.name}", "sample", sampling, {"prompts": prompts, "model": self.teacher})
