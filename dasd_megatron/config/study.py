"""The study file: one recipe in several arms and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from dasd_megatron.config.base import Config, Name, NonNegative

# What a study itself gives each of its runs.
OWN_SETTINGS = ("name", "run_dir", "artifacts", "seed", "evaluation.seed")


class ComparisonConfig(Config):
    """A question that two arms answer."""

    name: str
    """What is compared, in a few words."""

    arm: Name
    """The arm of interest."""

    against: Name
    """The arm that it is measured against; or `student`, the model that all arms start from."""


class StudyConfig(Config):
    """One recipe in several arms and seeds."""

    name: Name
    """Of the study, in titles."""

    study_dir: Path
    """Folder of the study: the artifacts of all its runs in `artifacts`, each run's report in ARM/seed-N, tables and figures."""

    recipe: Path
    """The recipe that the arms vary, relative to the folder where the tool is run."""

    seeds: Annotated[list[NonNegative], Field(min_length=1)]
    """Each arm is run with each of them; differences between arms are of runs with the same seed."""

    settings: dict[str, Any] = {}
    """Settings of the recipe that differ in all arms, as on a command line: {training.epochs: 6}."""

    arms: Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]
    """The arms by name: the settings in which each differs."""

    comparisons: list[ComparisonConfig] = []
    """Which arms are compared; by default each with the first."""

    @model_validator(mode="after")
    def _possible(self) -> StudyConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds}: give none twice")
        for where, settings in {"settings": self.settings, **{f"arms.{k}": v for k, v in self.arms.items()}}.items():
            for key in OWN_SETTINGS:
                if key in settings:
                    raise ValueError(f"{where}: {key} is given by the study itself; leave it out")
        for reserved in ("student", "teacher"):
            if reserved in self.arms:
                raise ValueError(f"arms.{reserved}: that's the name of a model; choose another")
        for index, comparison in enumerate(self.comparisons):
            for key, arm in {"arm": comparison.arm, "against": comparison.against}.items():
                if arm not in self.arms and (key, arm) != ("against", "student"):
                    raise ValueError(f"comparisons.{index}.{key}: {arm} is not among the arms ({', '.join(self.arms)})")
        return self

    def compared(self) -> list[ComparisonConfig]:
        """The comparisons, written down or by default."""
        first, *others = self.arms
        return self.comparisons or [ComparisonConfig(name=arm, arm=arm, against=first) for arm in others]
