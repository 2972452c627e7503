"""What a finished run shows: the report and the final model, in the run folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import IO

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.pipeline.graph import REPORT
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import disk_error, write_atomically


def publish(recipe: Recipe, steps: Mapping[str, Step]) -> None:
    """The report's files and, of a run that trains, the link `final` to the last stage's model, in the run folder."""
    report = Artifact(steps[REPORT].folder)
    for name in ("report.html", "summary.json", "scores.json"):
        content = report.file(name).read_bytes()
        write_atomically(recipe.run_dir / name, partial(_write, content=content))
    if not recipe.stages:
        return
    final = steps[f"export_{recipe.stages[-1].name}"].folder
    link, temporary = recipe.run_dir / "final", recipe.run_dir / ".final.tmp"
    if link.is_dir() and not link.is_symlink():  # a copy of the run folder that followed links
        raise UserError(
            f"{link}: is a folder, where a link to {final} belongs; move it away and run the same command again"
        )
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(final, recipe.run_dir))
        temporary.rename(link)
    except OSError as error:
        raise disk_error(link, error) from error


def _write(file: IO[bytes], content: bytes) -> None:
    file.write(content)
