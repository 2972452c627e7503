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


class ExportStep(StepKind[StepConfig]):
    """Reads `checkpoint`, a stage's, and `model`, the student's folder, for its tokenizer and templates."""

    name = "export"

    def run(self, context: StepContext[StepConfig]) -> dict[str, Any]:
        """Writes a Hugging Face model folder."""
        from conversion.convert import export_hf

        checkpoint = context.inputs["checkpoint"] / CHECKPOINT
        return {"counts": export_hf(checkpoint, context.output.path, like=context.inputs["model"]).counts}

    def cost(self, config: StepConfig, inputs: InputEstimates) -> Cost:
        """The weights."""
        return Cost(1, "model", bytes=inputs.student_bytes())
