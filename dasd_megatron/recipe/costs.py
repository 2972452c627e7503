"""What each step of a run will cost, before it runs: tokens, GPU-hours, storage. No torch.

- Decoding (sample, answer, continue, evaluate) goes by the GPUs' memory bandwidth, see decoding.py, after a forward pass over
  the prompts.
- Scoring and training go by FLOPs: a forward pass is a third of training_flops.
- Which shares of bandwidth and FLOP/s are reached is an assumption: the recipe's `expected` section.
- Storage is reckoned before compression.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dasd_megatron.errors import UserError
from dasd_megatron.recipe.amounts import Amounts, Documents, Unknown, source, training_of
from dasd_megatron.recipe.decoding import tokens_per_second, weight_bytes
from dasd_megatron.recipe.estimate import GPUS, GpuName, hours, parameter_count
from dasd_megatron.recipe.preflight import read_config
from dasd_megatron.recipe.resources import JobResources
from dasd_megatron.recipe.schema import Engine, Parallel, Recipe
from dasd_megatron.recipe.shape import Shape
from dasd_megatron.recipe.steps import ENGINE_KINDS, Step

# Bytes of a token: text, id, log-probability, and where it starts in the text.
TEXT, ID, LOGPROB, START = 4, 4, 4, 4
# On disk, of each token of a prompt and of a response.
SAMPLED = (TEXT + ID, TEXT + ID + LOGPROB)
FILTERED = (TEXT + 2 * ID, SAMPLED[1] + ID + 2 * START)  # in the student's tokens, too
SCORED = (FILTERED[0], FILTERED[1] + LOGPROB)
PACKED = ID + 1 / 8  # and one bit: whether it is a target


@dataclass(frozen=True)
class Cost:
    """Of one step; None where it isn't known, or where there is nothing to count.

    Attributes:
        amount, unit: what the step makes: 420,000 responses.
        tokens_in: read; of training: trained on, in all epochs.
        tokens_out: written.
        hours: from its start to its end.
        gpu_hours: of all GPUs that its job holds.
        bytes: what stays on disk.
        checkpoint_bytes: what a training stage needs besides, while it runs.
        counted: whether what it reads was counted; else it is expected.
        missing: what has to be known for the rest.
    """

    amount: float | None = None
    unit: str = ""
    tokens_in: float | None = None
    tokens_out: float | None = None
    hours: float | None = None
    gpu_hours: float | None = None
    bytes: float | None = None
    checkpoint_bytes: float = 0.0
    counted: bool = False
    missing: str | None = None


class Costs:
    """Costs of a recipe's steps on GPUs of one kind."""

    def __init__(self, recipe: Recipe, gpu: GpuName) -> None:
        self._recipe, self._gpu = recipe, gpu
        self._amounts = Amounts(recipe.expected)

    def of(self, step: Step, resources: JobResources) -> Cost:
        """The cost of one step, as a job with these resources."""
        try:
            cost = self._amount(step)
            if not resources.gpus_per_node or step.kind not in ("train", *ENGINE_KINDS):
                return cost
        except (Unknown, UserError) as problem:
            return Cost(missing=str(problem))
        try:
            took = self._training_hours(step) if step.kind == "train" else self._engine_hours(step, resources)
        except (Unknown, UserError) as problem:
            return replace(cost, missing=str(problem))
        return replace(cost, hours=took, gpu_hours=took * resources.nodes * resources.gpus_per_node)

    def _amount(self, step: Step) -> Cost:
        """Everything but hours."""
        match step.kind:
            case "prompts":
                prompts = self._amounts.prompts(step)
                tokens = prompts * self._recipe.expected.prompt_tokens
                return Cost(prompts, "prompts", tokens_out=tokens, bytes=tokens * TEXT)
            case "sample" | "answer" | "continue":
                made = self._amounts.documents(step)
                read, written = made.count * (made.prompt + made.prefix), made.count * made.response
                return Cost(made.count, "responses", read, written, bytes=_on_disk(made, SAMPLED))
            case "filter" | "score" | "select":
                read_from, made = source(step, "responses"), self._amounts.documents(step)
                size = _on_disk(made, FILTERED if step.kind == "filter" or made.prefix else SCORED)
                read = self._amounts.documents(read_from).tokens
                return Cost(made.count, "responses", read, made.tokens, bytes=size, counted=read_from.done)
            case "pack":
                packs, counted = self._amounts.packs(step), source(step, "responses").done
                size = packs.tokens * PACKED
                return Cost(packs.count, "packs", packs.tokens, packs.tokens, bytes=size, counted=counted)
            case "train":
                return self._training(step)
            case "import" | "export":
                return Cost(1, "model", bytes=self._student_bytes(self._recipe.training.precision))
            case "evaluate":
                answers = self._amounts.answers(step)
                read = answers.count * answers.prompt + self._amounts.documents(source(step, "reference")).tokens
                written = answers.count * answers.response
                return Cost(answers.count, "answers", read, written, bytes=written * TEXT)
        return Cost()  # report

    def _training(self, step: Step) -> Cost:
        packs, training = self._amounts.packs(source(step, "packs")), training_of(step)
        steps = training.total_steps(packs.count)
        tokens = steps * training.global_batch * packs.tokens / packs.count
        weights = self._student_bytes(training.precision)
        cost = Cost(steps, "steps", tokens_in=tokens, counted=source(step, "packs").done)
        if weights is None:
            return cost
        # With two moments in fp32, and fp32 master weights beside weights in bf16.
        checkpoint = weights * (14 / 2 if training.precision == "bf16" else 12 / 4)
        keep, every = step.execution["keep_checkpoints"], step.execution["keep_every"]
        stays = (steps - 1) // every * checkpoint if every else 0.0
        return replace(cost, bytes=weights + stays, checkpoint_bytes=keep * checkpoint)

    def _training_hours(self, step: Step) -> float:
        packs, training = self._amounts.packs(source(step, "packs")), training_of(step)
        flops = packs.flops(_shape(self._recipe.student.model), step.config["isolate_documents"])
        flops *= training.total_steps(packs.count) * training.global_batch / packs.count
        ranks = Parallel(**step.execution["parallel"]).world_size
        return hours(flops, ranks, self._gpu, training.fp8 is not None, self._recipe.expected.flops_share)

    def _engine_hours(self, step: Step, resources: JobResources) -> float:
        """Reading, and then writing, shared out among the engines that get a shard."""
        expected, amounts = self._recipe.expected, self._amounts
        engine = Engine(**step.config["engine"], **step.execution["engine"])
        folder = self._model(step)
        shape, shards = _shape(folder), amounts.shards(step)
        engines = min(resources.nodes * resources.processes_per_node, shards)
        scored = {"score": "responses", "evaluate": "reference"}.get(step.kind)
        flops = 0.0 if scored is None else amounts.documents(source(step, scored)).flops(shape)
        decoding = 0.0
        if step.kind != "score":
            asked = amounts.answers(step) if step.kind == "evaluate" else amounts.documents(step)
            flops += replace(asked, response=0.0).flops(shape)
            rate = tokens_per_second(
                shape,
                weight_bytes(folder, shape, engine),
                engine,
                GPUS[self._gpu],
                length=asked.prompt + asked.prefix + asked.response / 2,
                sequences=asked.count / shards,
                share=expected.bandwidth_share,
            )
            decoding = asked.count * asked.response / (engines * rate) / 3600
        gpus = engines * engine.tensor_parallel
        return hours(flops / 3, gpus, self._gpu, fp8=False, efficiency=expected.flops_share) + decoding

    def _model(self, step: Step) -> Path:
        """The folder of the model that an engine step runs, or of the student that it was trained from."""
        model = step.inputs["model"]
        return self._recipe.student.model if isinstance(model, Step) or model.path is None else model.path

    def _student_bytes(self, precision: str) -> float | None:
        """Of the student's weights; None where its config can't be read here."""
        try:
            return float(parameter_count(_shape(self._recipe.student.model))) * (2 if precision == "bf16" else 4)
        except (Unknown, UserError):
            return None


def _shape(folder: Path) -> Shape:
    """The model's sizes. Raises Unknown where it is on another machine, UserError where they can't be read."""
    if not folder.is_dir():
        raise Unknown(f"the sizes of {folder}, which isn't on this machine")
    return Shape.of(read_config(folder), folder)


def _on_disk(documents: Documents, by_token: tuple[float, float]) -> float:
    """Bytes, by those of each token of a prompt and of a response."""
    prompt, response = by_token
    return documents.count * (documents.prompt * prompt + (documents.prefix + documents.response) * response)
