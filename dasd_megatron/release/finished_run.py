"""A finished run, found again by its folder alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dasd_megatron.artifacts.artifact import Artifact, is_complete
from dasd_megatron.report.report import PAGE, SCORES, SUMMARY, ReportConfig
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.hashing import hash_file


@dataclass(frozen=True)
class Stage:
    """One training stage.

    Attributes:
        data: the step whose table `responses` it was trained on: `select`, or `filter` of a mixed-policy stage.
        kind: `sampled`, `mixed_policy`, or `turns`.
    """

    name: str
    kind: str
    data: Artifact


class FinishedRun:
    """The artifacts of the run whose report a folder shows. Raises UserError where there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = _published_report(folder)
        self.summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text())
        config = ReportConfig.model_validate({"threads": 1, **self.report.manifest["config"]})
        self.title, self._stages = config.title, config.stages
        if not self._stages:
            raise UserError(f"{folder}: this run trained no model; there is nothing to release")

    def has(self, step: str) -> bool:
        """Whether the run has this step."""
        return step in self.report.manifest["inputs"]

    def step(self, name: str) -> Artifact:
        """What a step made. Its folder is where the run folder is now, wherever it was written."""
        recorded = Path(self.report.manifest["inputs"][name]["path"])
        return Artifact(self.report.path.parent / recorded.name)

    @cached_property
    def stages(self) -> list[Stage]:
        """In the order of training."""
        return [self._stage(name) for name in self._stages]

    def _stage(self, name: str) -> Stage:
        if self.has(f"select_{name}"):
            return Stage(name, "sampled", self.step(f"select_{name}"))
        kind = "turns" if self.has(f"turns_{name}") else "mixed_policy"
        return Stage(name, kind, self.step(f"filter_{name}"))

    @property
    def model(self) -> Artifact:
        """The last stage's model, as a Hugging Face folder."""
        return self.step(f"export_{self._stages[-1]}")

    def model_folder(self, which: str) -> Path:
        """The folder, as the recipe names it, of the `student` before training or of the `teacher`."""
        if which == "student":
            path = self.step("import_student").manifest["inputs"]["model"]["path"]
        else:
            path = self.step(f"filter_{self._stages[0]}").manifest["inputs"]["teacher"]["path"]
        return Path(path)


def _published_report(folder: Path) -> Artifact:
    """The artifact of the report that the run folder shows, of all that were made in it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    files = [folder / name for name in (PAGE, SUMMARY, SCORES)]
    if not all(file.is_file() for file in files):
        raise UserError(f"{folder}: no finished run (no {PAGE}); run its recipe to the end first")
    shown = {file.name: hash_file(file) for file in files}
    artifacts = folder / "artifacts"
    if not artifacts.is_dir():  # runs of a study share a folder
        artifacts = (folder / "final").resolve().parent
    for path in sorted(artifacts.glob("report-*")):
        if is_complete(path):
            report = Artifact(path)
            if shown == {entry["name"]: entry["sha256"] for entry in report.manifest["files"]}:
                return report
    raise UserError(
        f"{folder}: {PAGE} isn't that of a run whose steps are here; run its recipe again, which makes it again"
    )
