"""What an experiment ships to the cluster: the source tree and the recipe, once for all of its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nemo_run as run

from dasd_megatron.runtime.git_source import ROOT, Source
from dasd_megatron.utils.files import write_atomically

# Inside the experiment's folder.
TREE, RECIPE = "source", "recipe.yaml"


@dataclass(kw_only=True)
class SourcePackage(run.Packager):  # type: ignore[misc]
    """NeMo-Run's hook for what a job needs; it calls `package` for every job before it submits the first.

    Attributes:
        recipe: the recipe's text, with every path absolute.
        tree: whether the source tree goes along.
    """

    recipe: str
    tree: bool

    def package(self, path: Path, job_dir: str, name: str) -> str:
        """Writes tree and recipe beside the jobs' folders. Returns no archive: there is nothing to unpack for each job."""
        experiment = Path(job_dir).parent
        recipe = experiment / RECIPE
        if not recipe.exists():
            source = Source.of(ROOT) if self.tree else None
            if source is not None:
                source.write(experiment / TREE)
            write_atomically(recipe, lambda file: file.write(self.recipe.encode()))
        return ""
