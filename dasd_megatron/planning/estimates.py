"""What each step of a run is expected to make, before it runs. No torch.

Each step's amount follows from the step before it. What a finished step has counted (its manifest) goes before what the recipe
expects (its `expected` section). Of the documents of a step a mean length and its spread are known; the filters of sampled
stages are taken to let everything pass, and a student's answers that end by themselves to be as long as the teacher's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.models.parameter_count import parameter_count
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.steps.cost_estimate import Documents, Packs, Unknown, model_shape
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError


class Estimates:
    """Amounts of a run's steps, each estimated once."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._documents: dict[str, Documents] = {}
        self._counted: dict[str, Mapping[str, float] | None] = {}

    def of(self, step: Step) -> StepEstimates:
        """The amounts as one step sees them."""
        return StepEstimates(self, step)

    def prompts(self, step: Step) -> float:
        """How many prompts a step makes. Raises Unknown where neither the step is done nor a limit is set."""
        counts = self._counts(step)
        return step.kind.prompts(step.config, self.of(step)) if counts is None else counts["prompts"]

    def documents(self, step: Step) -> Documents:
        """The responses that a step makes, scores or passes on."""
        if step.name not in self._documents:
            made, counts = step.kind.documents(step.config, self.of(step)), self._counts(step)
            if counts is not None:
                tokens = counts.get("tokens", made.response * counts["responses"])
                made = made.fewer(counts["responses"] / made.count)
                made = replace(made, count=counts["responses"], response=tokens / counts["responses"])
            self._documents[step.name] = made
        return self._documents[step.name]

    def packs(self, step: Step) -> Packs:
        """The packs that a step makes; a pack is taken to be full."""
        counts = self._counts(step)
        if counts is None:
            return step.kind.packs(step.config, self.of(step))
        length = counts["tokens"] / counts["documents"]
        number, spread = counts["documents"], self.recipe.expected.length_spread
        return Packs(int(counts["packs"]), (Documents(number, number, 0, length, spread=spread),))

    def shards(self, step: Step) -> int:
        """Into how many parts a step's work is cut."""
        return step.kind.shards(step.config, self.of(step))

    def _counts(self, step: Step) -> Mapping[str, float] | None:
        """What a finished step has counted; None for one that isn't done."""
        if step.name not in self._counted:
            self._counted[step.name] = Artifact(step.folder).manifest["counts"] if step.done else None
        return self._counted[step.name]


class StepEstimates:
    """One step's inputs (implements steps.cost_estimate.InputEstimates)."""

    def __init__(self, estimates: Estimates, step: Step) -> None:
        self._estimates, self._step = estimates, step
        self.expected = estimates.recipe.expected

    def prompts(self, name: str) -> float:
        """How many prompts the input has."""
        return self._estimates.prompts(self._step.source(name))

    def documents(self, name: str) -> Documents:
        """Responses of the input."""
        return self._estimates.documents(self._step.source(name))

    def packs(self, name: str) -> Packs:
        """Packs of the input."""
        return self._estimates.packs(self._step.source(name))

    def shards(self, name: str) -> int:
        """Into how many parts the input's work is cut."""
        return self._estimates.shards(self._step.source(name))

    def is_counted(self, name: str) -> bool:
        """Whether the input is finished, so that its amounts are counted and not expected."""
        return self._step.source(name).done

    def inputs_of(self, name: str) -> StepEstimates:
        """The input's own inputs."""
        return self._estimates.of(self._step.source(name))

    def own_prompts(self) -> float:
        """Prompts of the step itself."""
        return self._estimates.prompts(self._step)

    def own_documents(self) -> Documents:
        """Responses of the step itself."""
        return self._estimates.documents(self._step)

    def own_packs(self) -> Packs:
        """Packs of the step itself."""
        return self._estimates.packs(self._step)

    def own_shards(self) -> int:
        """Shards of the step itself."""
        return self._estimates.shards(self._step)

    def model_folder(self, name: str) -> Path:
        """The model folder that the input is; of a student yet to be trained, the one that it starts from."""
        model = self._step.inputs[name]
        return self._student if isinstance(model, Step) or model.path is None else model.path

    def student_shape(self) -> ModelShape:
        """Sizes of the student. Raises Unknown where it is on another machine."""
        return model_shape(self._student)

    def student_bytes(self) -> float | None:
        """Bytes of the student's weights in the precision of training; None where its config can't be read here."""
        try:
            count = parameter_count(self.student_shape())
        except (Unknown, UserError):
            return None
        return float(count) * (2 if self._estimates.recipe.training.precision == "bf16" else 4)

    @property
    def _student(self) -> Path:
        return self._estimates.recipe.student.model
