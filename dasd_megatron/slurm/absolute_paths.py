"""A recipe with its paths as jobs will need them."""

from __future__ import annotations

import os
from pathlib import Path

from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.stages import StageConfig
from dasd_megatron.slurm.cluster_config import ClusterConfig
from dasd_megatron.utils.errors import UserError


def with_absolute_paths(recipe: Recipe, cluster: ClusterConfig) -> Recipe:
    """Raises UserError for a relative path where the cluster is remote."""
    return _Absolute(cluster).recipe(recipe)


class _Absolute:
    def __init__(self, cluster: ClusterConfig) -> None:
        self._tunnel = cluster.tunnel

    def _path(self, key: str, path: Path | None) -> Path | None:
        if path is None or path.is_absolute():
            return path
        if self._tunnel is not None:
            raise UserError(f"{key}={path}: give an absolute path on {self._tunnel.host}")
        return Path(os.path.abspath(path))

    def recipe(self, recipe: Recipe) -> Recipe:
        """All of it."""
        run_dir = self._path("run_dir", recipe.run_dir)
        if run_dir is not None and self._tunnel is None:
            run_dir = run_dir.resolve()  # jobs are named after it, by whatever path it is reached
        prompts = {}
        if recipe.prompts.train is not None:
            path = self._path("prompts.train.path", recipe.prompts.train.path)
            prompts["train"] = recipe.prompts.train.model_copy(update={"path": path})
        benchmarks = [
            benchmark.model_copy(update={"path": self._path(f"evaluation.benchmarks.{index}.path", benchmark.path)})
            for index, benchmark in enumerate(recipe.evaluation.benchmarks)
        ]
        models = {
            name: model.model_copy(update={"model": self._path(f"{name}.model", model.model)})
            for name, model in {"teacher": recipe.teacher, "student": recipe.student}.items()
        }
        turns = recipe.mixed_policy.turns
        predictors = {
            key: self._path(f"mixed_policy.turns.{key}", getattr(turns, key))
            for key in ("student_predictor", "teacher_predictor")
        }
        return recipe.model_copy(
            update={
                "stages": [self._stage(index, stage) for index, stage in enumerate(recipe.stages)],
                "mixed_policy": recipe.mixed_policy.model_copy(update={"turns": turns.model_copy(update=predictors)}),
                "run_dir": run_dir,
                "artifacts": self._path("artifacts", recipe.artifacts),
                **models,
                "prompts": recipe.prompts.model_copy(update=prompts),
                "evaluation": recipe.evaluation.model_copy(update={"benchmarks": benchmarks}),
            }
        )

    def _stage(self, index: int, stage: StageConfig) -> StageConfig:
        if stage.kind != "sampled":
            return stage
        found: dict[str, object] = {}
        if stage.source is not None:
            path = self._path(f"stages.{index}.source.path", stage.source.path)
            found["source"] = stage.source.model_copy(update={"path": path})
        if stage.responses is not None:
            key, logprobs = f"stages.{index}.responses", stage.responses.logprobs
            if logprobs is not None:
                logprobs = logprobs.model_copy(update={"path": self._path(f"{key}.logprobs.path", logprobs.path)})
            path = self._path(f"{key}.path", stage.responses.path)
            found["responses"] = stage.responses.model_copy(update={"path": path, "logprobs": logprobs})
        return stage.model_copy(update=found)
