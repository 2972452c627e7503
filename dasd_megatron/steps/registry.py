"""The step kinds. Adding one: a module with a subclass of StepKind, and a line here (or a plugin that registers it)."""

from __future__ import annotations

from typing import Any

from dasd_megatron.steps.step import StepKind
from dasd_megatron.utils.registry import Registry

STEP_KINDS: Registry[type[StepKind[Any]]] = Registry(
    "step kind",
    {
        "prompts": "dasd_megatron.sampling.prompts:PromptsStep",
        "response_prompts": "dasd_megatron.sampling.response_prompts:ResponsePromptsStep",
        "responses": "dasd_megatron.sampling.existing_responses:ResponsesStep",
        "sample": "dasd_megatron.sampling.sample:SampleStep",
        "turns": "dasd_megatron.sampling.turns:TurnsStep",
        "rollout": "dasd_megatron.sampling.student_rollout:RolloutStep",
        "continue": "dasd_megatron.sampling.teacher_continuation:ContinueStep",
        "score": "dasd_megatron.sampling.score:ScoreStep",
        "probe": "dasd_megatron.sampling.engine_probe:ProbeStep",
        "filter": "dasd_megatron.curation.filtering:FilterStep",
        "select": "dasd_megatron.curation.selection:SelectStep",
        "pack": "dasd_megatron.curation.packing:PackStep",
        "worst_case_packs": "dasd_megatron.curation.worst_case_packs:WorstCasePacksStep",
        "import": "conversion.import_export_steps:ImportStep",
        "export": "conversion.import_export_steps:ExportStep",
        "train": "dasd_megatron.training.train_step:TrainStep",
        "benchmark": "dasd_megatron.evaluation.benchmark_step:BenchmarkStep",
        "answer": "dasd_megatron.evaluation.answer_step:AnswerStep",
        "grade": "dasd_megatron.evaluation.grade_step:GradeStep",
        "report": "dasd_megatron.report.report:ReportStep",
    },
)
