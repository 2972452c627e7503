"""Step `report`: one self-contained HTML page, summary.json and scores.json, from the manifests and tables of a whole run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader

from dasd_megatron import __version__
from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.training_files import METRICS
from dasd_megatron.report.reader.benchmark_view import benchmark_view
from dasd_megatron.report.reader.content import View, embedded
from dasd_megatron.report.reader.mixed_policy_view import mixed_policy_view
from dasd_megatron.report.reader.selection_view import selection_view
from dasd_megatron.report.summary import scores, summarize
from dasd_megatron.steps.step import StepConfig, StepContext, StepKind
from dasd_megatron.utils.files import write_atomically, write_json

PAGE, SUMMARY, SCORES = "report.html", "summary.json", "scores.json"
# Responses a temperature in the density figure; more would change no pixel.
MAX_RESPONSES = 20_000
# Responses to read, in all. Of 16,000 characters each, in 120 sentences, they make the page 13 MB larger.
MAX_READ = 2_000
# Of p_T - p_S, as the manifests of `select` name them: quantiles, and thresholds with the share that they would call Teacher.
QUANTILES, THRESHOLDS = ("0.05", "0.25", "0.5", "0.75", "0.95"), ("0.1", "0.3", "0.5", "0.7")


class ReportConfig(StepConfig):
    """Config of a step `report`."""

    title: str
    # Names of their folders.
    teacher: str
    student: str
    stages: list[str]
    models: list[str]
    benchmarks: list[str]


class ReportStep(StepKind[ReportConfig]):
    """Reads every step of the run."""

    name = "report"
    command = "evaluate"

    def run(self, context: StepContext[ReportConfig]) -> dict[str, Any]:
        """Writes the files into the artifact."""
        artifacts = {name: Artifact(path) for name, path in context.inputs.items()}
        config = context.config
        summary = {
            "teacher": config.teacher,
            "student": config.student,
            **summarize(artifacts, config.models, config.benchmarks),
        }
        write_json(context.output.path / SUMMARY, summary)
        write_json(context.output.path / SCORES, scores(artifacts, context.config.models, context.config.benchmarks))
        page = _page(context.config, artifacts, summary)
        write_atomically(context.output.path / PAGE, lambda file: file.write(page))
        return {"counts": {"models": len(context.config.models), "benchmarks": len(context.config.benchmarks)}}


def _page(config: ReportConfig, artifacts: Mapping[str, Artifact], summary: Mapping[str, Any]) -> bytes:
    """The HTML page."""
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template("page.html")
    return template.render(
        title=config.title,
        version=__version__,
        summary=summary,
        overview=_overview(summary),
        benchmark_figures={name: _benchmark_figures(facts) for name, facts in summary["benchmarks"].items()},
        figures=_figures(artifacts, summary),
        quantiles=QUANTILES,
        thresholds=THRESHOLDS,
        selections={
            name.removeprefix("select_"): artifact.manifest for name, artifact in _of_kind(artifacts, "select").items()
        },
        steps={name: artifact.manifest for name, artifact in artifacts.items()},
        reader=embedded(views) if (views := _views(config, artifacts)) else "",
    ).encode()


def _views(config: ReportConfig, artifacts: Mapping[str, Artifact]) -> list[View]:
    """What the reader shows: benchmarks, then stages, each as many responses."""
    sampled = [stage for stage in config.stages if f"select_{stage}" in artifacts]
    mixed = [stage for stage in config.stages if stage not in sampled]
    share = MAX_READ // max(len(config.benchmarks) + len(config.stages), 1)
    return [
        *(benchmark_view(artifacts, config.models, benchmark, share) for benchmark in config.benchmarks),
        *(selection_view(artifacts, stage, share) for stage in sampled),
        *(mixed_policy_view(artifacts, stage, share) for stage in mixed),
    ]


def _overview(summary: Mapping[str, Any]) -> dict[str, str]:
    """Of more than one benchmark, SVG by title: all of them at once."""
    from dasd_megatron.report import figures  # matplotlib

    measures = {benchmark: facts["measures"] for benchmark, facts in summary["benchmarks"].items()}
    return {"Accuracy by benchmark and stage": figures.accuracy_by_benchmark(measures)} if len(measures) > 1 else {}


def _benchmark_figures(facts: Mapping[str, Any]) -> dict[str, str]:
    """Of one benchmark, SVG by title."""
    from dasd_megatron.report import figures  # matplotlib

    drawn = {
        "Accuracy by stage": figures.accuracy_by_stage(facts["measures"]),
        "Length and truncation by stage": figures.length_by_stage(facts["measures"]),
    }
    if facts["alignment"]:
        drawn["Alignment by stage"] = figures.alignment_by_stage(facts["alignment"])
    return drawn


def _figures(artifacts: Mapping[str, Artifact], summary: Mapping[str, Any]) -> dict[str, str]:
    """Of the run, SVG by title, in the order of the page."""
    from dasd_megatron.report import figures  # matplotlib

    drawn = {}
    stages = _metrics(artifacts)
    if stages:
        losses = {stage: [line["loss"] for line in lines] for stage, lines in stages.items()}
        held_out = {
            stage: {line["step"]: line["held_out_loss"] for line in lines if "held_out_loss" in line}
            for stage, lines in stages.items()
        }
        drawn["Loss by stage"] = figures.loss_by_stage(losses, held_out)
    probabilities = _response_probabilities(artifacts)
    if probabilities:
        drawn["Probability of responses by temperature"] = figures.probability_density(probabilities)
    for name, artifact in _of_kind(artifacts, "select").items():
        sentences = artifact.read("sentences")
        drawn[f"Sentences: {name.removeprefix('select_').replace('_', ' ')}"] = figures.sentence_scatter(
            sentences["teacher"].to_pylist(),
            sentences["student"].to_pylist(),
            sentences["kind"].to_pylist(),
            artifact.manifest["threshold"],
        )
    dropped = {
        name: artifact.manifest["dropped"] for name, artifact in artifacts.items() if artifact.manifest.get("dropped")
    }
    if dropped:
        drawn["Dropped rows, by reason"] = figures.dropped_by_reason(dropped)
    for name, artifact in _of_kind(artifacts, "rollout").items():
        answers = artifact.read("responses", ["max_tokens", "finish_reason"])
        cap = artifact.manifest["length_cap"]
        lengths = [tokens / cap for tokens in answers["max_tokens"].to_pylist()]
        truncated = [reason == "length" for reason in answers["finish_reason"].to_pylist()]
        title = f"Student answers truncated, by length: {name.removeprefix('rollout_').replace('_', ' ')}"
        drawn[title] = figures.truncated_by_length(lengths, truncated)
    drawn["Time by step"] = figures.seconds_by_step(summary["seconds"])
    return drawn


def _of_kind(artifacts: Mapping[str, Artifact], kind: str) -> dict[str, Artifact]:
    return {name: artifact for name, artifact in artifacts.items() if artifact.manifest["kind"] == kind}


def _metrics(artifacts: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Lines of the log of each stage's steps."""
    return {
        name.removeprefix("train_"): [json.loads(line) for line in artifact.file(METRICS).read_text().splitlines()]
        for name, artifact in _of_kind(artifacts, "train").items()
    }


def _response_probabilities(artifacts: Mapping[str, Artifact]) -> dict[str, list[float]]:
    """Geometric-mean token probability of sampled responses by temperature."""
    by_temperature: dict[str, list[float]] = {}
    for name, artifact in {**_of_kind(artifacts, "sample"), **_of_kind(artifacts, "responses")}.items():
        if name.startswith("reference_"):
            continue
        for row in artifact.rows("responses", ["logprobs", "temperature"]):
            values = by_temperature.setdefault(f"{row['temperature']:g}", [])
            if len(values) == MAX_RESPONSES:
                break
            if row["logprobs"]:
                values.append(float(np.exp(np.mean(row["logprobs"]))))
    return by_temperature
