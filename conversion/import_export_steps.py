"""Steps `import` and `export`: the student into Megatron's format, and each stage's checkpoint out of it."""

from __future__ import annotations

from typing import Any

from dasd_megatron.artifacts.training_files import CHECKPOINT
from dasd_megatron.steps.cost_estimate import Cost, InputEstimates
from dasd_megatron.steps.step import StepConfig, StepContext, StepKind


class ImportStep(StepKind[StepConfig]):
    """Reads `model`, the student's folder."""

    name = "import"

    def run(self, context: StepContext[StepConfig]) -> dict[str, Any]:
        """Writes the student's weights as the checkpoint that the first stage starts from."""
        from conversion.convert import import_hf

        return {"counts": import_hf(context.inputs["model"], context.output.path / CHECKPOINT).counts}

    def cost(self, config: StepConfig, inputs: InputEstimates) -> Cost:
        """The weights."""
        return Cost(1, "model", bytes=inputs.student_bytes())


class ExportStepConfig(StepConfig):
    """Config of a step `export`."""

    # What the student was trained with in every conversation: the exported chat template has it as its default.
    system_prompt: str | None


class ExportStep(StepKind[ExportStepConfig]):
    """Reads `checkpoint`, a stage's, and `model`, the student's folder, for its tokenizer and templates."""

    name = "export"

    def run(self, context: StepContext[ExportStepConfig]) -> dict[str, Any]:
        """Writes a Hugging Face model folder."""
        from conversion.convert import export_hf
        from dasd_megatron.models.hf_assets import set_default_system_prompt

        checkpoint, folder = context.inputs["checkpoint"] / CHECKPOINT, context.output.path
        counts = export_hf(checkpoint, folder, like=context.inputs["model"]).counts
        if context.config.system_prompt is not None:
            set_default_system_prompt(folder, context.config.system_prompt)
        return {"counts": counts}

    def cost(self, config: ExportStepConfig, inputs: InputEstimates) -> Cost:
        """The weights."""
        return Cost(1, "model", bytes=inputs.student_bytes())
