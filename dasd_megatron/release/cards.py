"""The model card and the data card, from the manifests of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CardData, DatasetCardData, EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader

from dasd_megatron import __version__
from dasd_megatron.release.data_files import StageFiles
from dasd_megatron.release.finished_run import FinishedRun
from dasd_megatron.release.settings import stage_settings

CARD = "README.md"
# Rows of a data set, as its card says them: below each number.
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


@dataclass(frozen=True)
class Names:
    """What a run can't know.

    Attributes:
        base: the student before training, as the hub has it.
        teacher: the same.
        license: an identifier of the hub's; None where nothing is known.
        repository: OWNER/NAME on the hub, of both model and data; None where they aren't uploaded.
        has_data: whether the data set is published with the model.
    """

    base: str
    teacher: str
    license: str | None
    repository: str | None
    has_data: bool = True


def model_card(run: FinishedRun, names: Names, system_prompt: str | None, license_files: list[str]) -> str:
    """README.md of the model."""
    data = ModelCardData(
        base_model=names.base,
        datasets=[names.repository] if names.repository is not None and names.has_data else None,
        eval_results=_eval_results(run),
        library_name="transformers",
        license=names.license,
        model_name=run.title,
        pipeline_tag="text-generation",
        tags=["distillation", "reasoning", "dasd", "arxiv:2601.09088"],
    )
    content = _rendered(
        "model_card.md",
        run,
        names,
        results=results_table(run.summary),
        stages=[_stage_facts(run, index) for index in range(len(run.stages))],
        system_prompt=system_prompt,
        license_files=license_files,
    )
    return _card(data, content)


def data_card(run: FinishedRun, names: Names, files: Mapping[str, StageFiles]) -> str:
    """README.md of the data set."""
    configs = []
    for index, (stage, written) in enumerate(files.items()):
        texts = {"config_name": stage, "data_files": f"data/{stage}/*.parquet"}
        configs.append({**texts, "default": True} if index == 0 else texts)
        if written.has_logprobs:
            configs.append({"config_name": f"{stage}_logprobs", "data_files": f"logprobs/{stage}/*.parquet"})
    count = sum(written.responses for written in files.values())
    data = DatasetCardData(
        license=names.license,
        pretty_name=f"{run.title}: responses",
        size_categories=next((name for limit, name in _SIZES if count < limit), "n>10M"),
        task_categories=["text-generation"],
        tags=["distillation", "reasoning", "dasd", "arxiv:2601.09088"],
        configs=configs,
    )
    stages = [_stage_facts(run, index) for index in range(len(run.stages))]
    content = _rendered("data_card.md", run, names, stages=stages, files=files)
    return _card(data, content)


def results_table(summary: Mapping[str, Any]) -> str:
    """Markdown: a row a model and temperature, a column a benchmark; means with their 95% intervals, in percent."""
    benchmarks = summary["benchmarks"]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for benchmark, facts in benchmarks.items():
        for model, measures in facts["measures"].items():
            for temperature, measured in measures.items():
                decoding = "greedy" if temperature == "greedy" else f"T={temperature}, avg@{measured['samples']}"
                mean, low, high = (f"{100 * measured['accuracy'][name]:.1f}" for name in ("mean", "low", "high"))
                rows.setdefault((model.replace("_", " "), decoding), {})[benchmark] = f"{mean} [{low}, {high}]"
    lines = [["model", "decoding", *benchmarks], ["---", "---", *["---:"] * len(benchmarks)]]
    lines += [[model, decoding, *(row.get(name, "") for name in benchmarks)] for (model, decoding), row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _card(data: CardData, content: str) -> str:
    return f"---\n{data.to_yaml()}\n---\n\n{content.rstrip()}\n"


def _eval_results(run: FinishedRun) -> list[EvalResult]:
    """Of the last stage's model, at the highest temperature."""
    model = run.stages[-1].name
    found = []
    for benchmark, facts in run.summary["benchmarks"].items():
        measured = list(facts["measures"][model].values())[-1]
        found.append(
            EvalResult(
                task_type="text-generation",
                dataset_type=benchmark,
                dataset_name=benchmark,
                metric_type="accuracy",
                metric_name=f"avg@{measured['samples']}",
                metric_value=round(100 * measured["accuracy"]["mean"], 2),
            )
        )
    return found


def _stage_facts(run: FinishedRun, index: int) -> dict[str, Any]:
    stage = run.stages[index]
    trained = run.step(f"train_{stage.name}").manifest
    settings = yaml.safe_dump(stage_settings(run, stage), sort_keys=False, allow_unicode=True)
    return {
        "name": stage.name,
        "kind": stage.kind,
        "responses": stage.data.manifest["counts"]["responses"],
        "off_policy": run.step(f"pack_{stage.name}").manifest.get("off_policy", {}).get("taken", 0),
        "steps": trained["counts"]["steps"],
        "tokens": trained["counts"]["tokens"],
        "loss": trained["final_loss"],
        "settings": settings.strip(),
    }


def _rendered(template: str, run: FinishedRun, names: Names, **facts: Any) -> str:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True)
    source = run.report.manifest["source"]
    return environment.get_template(template).render(
        title=run.title,
        names=names,
        version=__version__,
        source=source,
        versions=run.report.manifest["versions"],
        **facts,
    )
