"""Which function runs which kind of step. Imported by name, so that a tool loads only what its step needs."""

from __future__ import annotations

import importlib
from typing import Any

KINDS = {
    "prompts": "dasd_megatron.sampling.prompts:run",
    "sample": "dasd_megatron.sampling.sample:SampleStep",
    "answer": "dasd_megatron.sampling.answer:AnswerStep",
    "continue": "dasd_megatron.sampling.continuation:ContinueStep",
    "score": "dasd_megatron.sampling.score:ScoreStep",
    "filter": "dasd_megatron.curation.filter:FilterStep",
    "select": "dasd_megatron.curation.select:run",
    "pack": "dasd_megatron.curation.pack:run",
    "import": "conversion.steps:import_student",
    "export": "conversion.steps:export_student",
    "train": "dasd_megatron.training.train:run",
    "evaluate": "dasd_megatron.evaluation.evaluate:EvaluateStep",
    "report": "dasd_megatron.report.report:run",
}


def implementation(kind: str) -> Any:
    """The StepFunction, or the ShardedStep class, of this kind."""
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)
