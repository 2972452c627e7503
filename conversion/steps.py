"""Steps `import` and `export`: the student into Megatron's format, and each stage's checkpoint out of it."""

from __future__ import annotations

from typing import Any

from conversion.convert import export_hf, import_hf
from dasd_megatron.step import StepContext
from dasd_megatron.training.train import CHECKPOINT


def import_student(context: StepContext) -> dict[str, Any]:
    """The student's weights as the checkpoint that the first stage starts from."""
    return {"counts": import_hf(context.inputs["model"], context.output.path / CHECKPOINT).counts}


def export_student(context: StepContext) -> dict[str, Any]:
    """A stage's checkpoint as a Hugging Face model folder, with the student's tokenizer and templates."""
    checkpoint = context.inputs["checkpoint"] / CHECKPOINT
    return {"counts": export_hf(checkpoint, context.output.path, like=context.inputs["model"]).counts}
