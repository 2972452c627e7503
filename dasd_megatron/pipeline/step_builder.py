"""How the steps of a recipe are put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.config.sources import DataSource
from dasd_megatron.steps.registry import STEP_KINDS
from dasd_megatron.steps.step import ExternalInput, Step, StepConfig
from dasd_megatron.utils.errors import UserError

Source = Step | ExternalInput


class StepBuilder:
    """Collects steps.

    Attributes:
        steps: by name, in the order that they were added in.
        teacher, student: the model folders.
    """

    def __init__(self, recipe: Recipe, remote: bool) -> None:
        self.recipe, self.remote = recipe, remote
        self.steps: dict[str, Step] = {}
        self.teacher = ExternalInput(recipe.teacher.model, str(recipe.teacher.model))
        self.student = ExternalInput(recipe.student.model, str(recipe.student.model))

    def add(self, name: str, kind: str, config: StepConfig, inputs: Mapping[str, Source]) -> Step:
        """A new step."""
        step = Step(name, STEP_KINDS.get(kind)(), config, inputs, self.recipe.folder_of_artifacts, self.remote)
        self.steps[name] = step
        return step

    @property
    def plain(self) -> StepConfig:
        """Config of steps that have no settings."""
        return StepConfig(threads=self.recipe.launch.threads)

    def engine(self, role: EngineRole) -> dict[str, Any]:
        """What the configs of all engine steps have."""
        launch = self.recipe.launch
        return {"threads": launch.threads, "engine": self.recipe.engine.of(role), "replicas": launch.replicas}

    def file(self, key: str, source: DataSource) -> ExternalInput:
        """What rows are read from; `key`: of the source in the recipe. Raises UserError where there is no such file."""
        if not self.remote and source.path is not None and not source.path.is_file():
            raise UserError(f"{key}.path: {source.path}: no such file")
        return ExternalInput(source.path, source.name)
