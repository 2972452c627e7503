"""The steps that a recipe implies, in the order in which they run, each with the name of its artifact.

A step is known by its kind (which function runs it), its config (the part of the recipe that shapes its result) and its
inputs (earlier steps, or files from outside). The hash of these names its folder: a changed setting re-runs what depends
on it and nothing else. `parallel` and `launch` shape no result and enter no hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dasd_megatron.artifacts.artifact import is_complete
from dasd_megatron.artifacts.hashing import fingerprint, hash_json
from dasd_megatron.errors import UserError
from dasd_megatron.recipe.layout import check_layout
from dasd_megatron.recipe.preflight import check_model_folder, read_config
from dasd_megatron.recipe.schema import Model, PromptSource, Recipe, Stage

# Raised when the format or meaning of a kind's artifact changes, so that older folders are not taken for new ones.
FORMAT_VERSION = 1
# Steps that run an engine, and so profit from several processes side by side.
ENGINE_KINDS = ("sample", "score", "answer", "continue", "evaluate")
# Settings of the engine that shape a result; the others say how it uses the machine (and shift numbers by rounding at most).
ENGINE_RESULT = {"name", "dtype", "max_length"}

# Settings of training that say when and how checkpoints are written.
CHECKPOINTS = ("save_every", "keep_checkpoints", "keep_every", "async_save")


@dataclass(frozen=True)
class External:
    """Input from outside the run: a file, a model folder, or a data set by name."""

    path: Path | None
    name: str

    @cached_property
    def key(self) -> str:
        """Content hash of the file or folder."""
        return fingerprint(self.path) if self.path is not None else hash_json(self.name)


@dataclass(frozen=True)
class Step:
    """One step of a run."""

    name: str
    kind: str
    config: Mapping[str, Any]  # JSON-able
    inputs: Mapping[str, Step | External]
    run_dir: Path
    # How it runs: replicas, parallel layout, save interval. Shapes no result, so it is not hashed.
    execution: Mapping[str, Any]
    # Whether its files are on another machine, so that nothing is known of them here.
    elsewhere: bool = False

    @cached_property
    def key(self) -> str:
        """Hash of everything that shapes the result."""
        inputs = {name: source.key for name, source in self.inputs.items()}
        return hash_json([FORMAT_VERSION, self.kind, self.config, inputs])

    @cached_property
    def folder(self) -> Path:
        """Where the artifact is, or will be."""
        return self.run_dir / "artifacts" / f"{self.name}-{self.key[:12]}"

    @property
    def done(self) -> bool:
        """Whether the artifact is finished; never so for one that is elsewhere."""
        return not self.elsewhere and is_complete(self.folder)

    def input_path(self, name: str) -> Path:
        """Folder or file of an input."""
        source = self.inputs[name]
        path = source.folder if isinstance(source, Step) else source.path
        if path is None:
            raise KeyError(f"{name} of {self.name} is no file")
        return path


def steps_of(recipe: Recipe, elsewhere: bool = False) -> dict[str, Step]:
    """Steps by name, each after those it reads. Raises UserError when a model folder or prompt file is absent.

    With `elsewhere` the files are on another machine: nothing is checked here, and no step is known to be done.
    """
    return _Builder(recipe, elsewhere).build()


class _Builder:
    def __init__(self, recipe: Recipe, elsewhere: bool) -> None:
        self.recipe, self.elsewhere = recipe, elsewhere
        self.steps: dict[str, Step] = {}
        self.teacher = External(recipe.teacher.model, str(recipe.teacher.model))
        self.student = External(recipe.student.model, str(recipe.student.model))
        if not elsewhere:
            self._check()

    def _check(self) -> None:
        recipe = self.recipe
        check_model_folder("teacher.model", recipe.teacher.model)
        check_model_folder("student.model", recipe.student.model)
        config = read_config(recipe.student.model)
        for stage in recipe.stages:
            check_layout(
                config,
                recipe.student.model,
                recipe.parallel,
                recipe.stage_training(stage),
                recipe.memory,
                recipe.packing.context_length,
            )

    def add(self, name: str, kind: str, inputs: Mapping[str, Step | External], **config: Any) -> Step:
        execution: dict[str, Any] = {"threads": self.recipe.launch.threads}
        if kind in ENGINE_KINDS:
            execution["replicas"] = self.recipe.launch.replicas
            execution["engine"] = self.recipe.engine.model_dump(exclude=ENGINE_RESULT)
            config["engine"] = self.recipe.engine.model_dump(include=ENGINE_RESULT)
        if kind == "train":
            execution["parallel"] = self.recipe.parallel.model_dump()
            execution["memory"] = self.recipe.memory.model_dump()
            execution["logging"] = {
                "tensorboard": str(self.recipe.run_dir / "tensorboard" / name)
                if self.recipe.logging.tensorboard
                else None,
                "wandb_project": self.recipe.logging.wandb_project,
            }
            execution |= {name: config["training"].pop(name) for name in CHECKPOINTS}
        step = Step(name, kind, _plain(config), inputs, self.recipe.run_dir, execution, self.elsewhere)
        self.steps[name] = step
        return step

    def build(self) -> dict[str, Step]:
        recipe = self.recipe
        self.test_prompts = self._prompts("prompts_test", "prompts.test", recipe.prompts.test, {})
        held_out = {"held_out": self.test_prompts}
        self.train_prompts = self._prompts("prompts_train", "prompts.train", recipe.prompts.train, held_out)
        checkpoint = self.add("import_student", "import", {"model": self.student})
        exported: Step | External = self.student
        models: dict[str, Step | External] = {"student": self.student}
        previous: Step | None = None  # selection of the sampled stage before
        for index, stage in enumerate(recipe.stages):
            if stage.temperature is None:
                assert previous is not None  # the recipe's own check
                packs = self._mixed_policy_data(stage, previous, exported)
            else:
                previous = self._sampled_data(stage)
                packs = self._pack(stage, {"responses": previous})
            checkpoint = self.add(
                f"train_{stage.name}",
                "train",
                {"packs": packs, "start": checkpoint, "model": self.student},
                training=recipe.stage_training(stage).model_dump(),
                isolate_documents=recipe.packing.isolate_documents,
                seed=recipe.seed + index,
            )
            exported = self.add(f"export_{stage.name}", "export", {"checkpoint": checkpoint, "model": self.student})
            models[stage.name] = exported
        models["teacher"] = self.teacher
        self._evaluate(models)
        for name in recipe.launch.steps:
            if name not in self.steps:
                raise UserError(f"launch.steps.{name}: no such step; steps: {', '.join(self.steps)}")
        return self.steps

    def _prompts(self, name: str, key: str, source: PromptSource, others: Mapping[str, Step]) -> Step:
        if not self.elsewhere and source.path is not None and not source.path.is_file():
            raise UserError(f"{key}.path: {source.path}: no such file")
        external = External(source.path, f"{source.dataset}/{source.split}")
        return self.add(name, "prompts", {"source": external, **others}, source=source, needs_answer=not others)

    def _sampled_data(self, stage: Stage) -> Step:
        """sample -> filter -> score -> select."""
        recipe = self.recipe
        limit = {} if stage.prompts is None else {"limit": stage.prompts}
        sampled = self.add(
            f"sample_{stage.name}",
            "sample",
            {"prompts": self.train_prompts, "model": self.teacher},
            model=recipe.teacher,
            sampling=recipe.sampling,
            temperature=stage.temperature,
            seed=recipe.seed,
            **limit,
        )
        filtered = self._filter(stage, sampled)
        scored = self.add(
            f"score_{stage.name}",
            "score",
            {"responses": filtered, "model": self.student},
            model=recipe.student,
        )
        return self.add(
            f"select_{stage.name}",
            "select",
            {"responses": scored},
            selection=recipe.selection,
            sentence_end=recipe.sentence_end,
            seed=recipe.seed,
        )

    def _mixed_policy_data(self, stage: Stage, previous: Step, student: Step | External) -> Step:
        """student answers -> teacher continues -> filter -> pack with off-policy rows."""
        recipe = self.recipe
        answered = self.add(
            f"answer_{stage.name}",
            "answer",
            {"responses": previous, "model": student},
            model=recipe.student,
            mixed_policy=recipe.mixed_policy.model_dump(include={"prompts", "temperature", "length_cap"}),
            prompts_per_shard=recipe.sampling.prompts_per_shard,
            seed=recipe.seed,
        )
        continued = self.add(
            f"continue_{stage.name}",
            "continue",
            {"answers": answered, "model": self.teacher, "student": self.student},
            model=recipe.teacher,
            student=recipe.student,
            sampling=recipe.sampling,
            mixed_policy=recipe.mixed_policy.model_dump(include={"cut_after", "keep", "temperature"}),
            grader=recipe.evaluation.grader,
            seed=recipe.seed,
        )
        filtered = self._filter(stage, continued)
        return self._pack(stage, {"responses": filtered, "off_policy": previous})

    def _filter(self, stage: Stage, responses: Step) -> Step:
        recipe = self.recipe
        return self.add(
            f"filter_{stage.name}",
            "filter",
            {"responses": responses, "teacher": self.teacher, "student": self.student},
            teacher=recipe.teacher,
            student=recipe.student,
            filters=recipe.filters,
            sentence_end=recipe.sentence_end,
            context_length=recipe.packing.context_length,
            max_length=recipe.engine.max_length,
        )

    def _pack(self, stage: Stage, inputs: Mapping[str, Step | External]) -> Step:
        recipe = self.recipe
        mixed = recipe.mixed_policy.model_dump(include={"off_policy_ratio", "mask_prefix"})
        return self.add(
            f"pack_{stage.name}",
            "pack",
            inputs,
            context_length=recipe.packing.context_length,
            mixed_policy=mixed if "off_policy" in inputs else None,
            seed=recipe.seed,
        )

    def _evaluate(self, models: Mapping[str, Step | External]) -> None:
        recipe = self.recipe
        reference = self.add(
            "reference",
            "sample",
            {"prompts": self.test_prompts, "model": self.teacher},
            model=recipe.teacher,
            sampling={
                "responses_per_prompt": 1,
                "max_tokens": recipe.sampling.max_tokens,
                "top_p": 1.0,
                "prompts_per_shard": recipe.evaluation.problems_per_shard,
            },
            limit=recipe.evaluation.alignment_prompts,
            temperature=1.0,
            seed=recipe.seed,
        )
        evaluations = {
            f"evaluate_{name}": self.add(
                f"evaluate_{name}",
                "evaluate",
                {"model": model, "prompts": self.test_prompts, "reference": reference, "teacher": self.teacher},
                model=recipe.teacher if name == "teacher" else recipe.student,
                teacher=recipe.teacher,
                is_teacher=name == "teacher",
                evaluation=recipe.evaluation,
                seed=recipe.seed,
            )
            for name, model in models.items()
        }
        self.add(
            "report",
            "report",
            {**self.steps, **evaluations},
            title=recipe.name,
            stages=[stage.name for stage in recipe.stages],
        )


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as JSON; where a model or a prompt file lies shapes no result (its content does, as an input)."""
    plain: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Model):
            plain[name] = value.model_dump(mode="json", exclude={"model"})
        elif isinstance(value, PromptSource):
            plain[name] = value.model_dump(mode="json", exclude={"path"})
        else:
            plain[name] = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    return plain
