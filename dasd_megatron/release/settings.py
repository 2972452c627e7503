"""Settings that made a stage's data and model, from the manifests of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dasd_megatron.release.finished_run import FinishedRun, Stage

# Of each kind of step, what of its settings anyone needs to make the same again. Paths and addresses are none of these.
SHOWN: Mapping[str, tuple[str, ...]] = {
    "sample": ("model", "temperature", "sampling"),
    "responses": ("model", "temperature"),
    "rollout": ("model", "temperature", "length_cap", "prompts"),
    "continue": ("model", "temperature", "sampling", "cut_after", "keep"),
    "turns": ("model", "student", "temperature", "sampling", "prompts"),
    "filter": ("filters", "sentence_end", "context_length", "grader"),
    "select": ("selection", "sentence_end", "min_sentence_bytes"),
    "pack": ("context_length", "off_policy_ratio", "mask_prefix"),
    "train": ("training", "isolate_documents", "seed"),
}


def stage_settings(run: FinishedRun, stage: Stage) -> dict[str, Any]:
    """{kind of step: its settings}, in the order of the steps."""
    found = {}
    for kind, names in SHOWN.items():
        step = f"{kind}_{stage.name}"
        if run.has(step):
            config = run.step(step).manifest["config"]
            found[kind] = {name: config[name] for name in names if config.get(name) is not None}
    return found
