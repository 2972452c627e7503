"""The recipe: every setting of a distillation, its type, its default and the reason for it.

Defaults are stated here and nowhere else. Where the paper (arXiv 2601.09088) gives a number it is the default; where it
leaves a choice open, the comment says what was chosen and why.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0, strict=True)]  # strict: `yes` is no number
NonNegative = Annotated[int, Field(ge=0, strict=True)]
Temperature = Annotated[float, Field(ge=0, le=10)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# Slurm's days-hours:minutes:seconds. YAML 1.1 reads an unquoted 04:00:00 as a number, so it has to be quoted.
TimeLimit = Annotated[str, Field(pattern=r"^(\d+-)?\d+:[0-5]\d:[0-5]\d$")]


class Section(BaseModel):
    """A part of the recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Model(Section):
    """A Hugging Face model folder and how to talk to it."""

    model: Path
    # How a response separates its reasoning from its answer: Qwen3's `<think>...</think>`, or gpt-oss's channels.
    response_format: Literal["think", "harmony"] = "think"
    system_prompt: str | None = None
    # Passed to the chat template as they are, for example {enable_thinking: true}.
    template_kwargs: dict[str, Any] = {}


class Columns(Section):
    """Names of a prompt file's columns. `uuid`, `domain` and `answer` may be absent from the file (null)."""

    uuid: str | None = "uuid"
    input: str = "input"
    domain: str | None = "domain"
    answer: str | None = "answer"


class PromptSource(Section):
    """Where problems come from: a JSONL or Parquet file, or a data set of the `datasets` library."""

    path: Path | None = None
    dataset: str | None = None
    # Of a data set: which of its configurations, which part, and which commit or tag.
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    columns: Columns = Columns()
    # The first so many rows that are well formed; all of them by default.
    limit: Positive | None = None
    # A row that is empty, malformed, or repeats a uuid: stop and name the line, or set it aside and count it.
    bad_rows: Literal["error", "drop"] = "error"

    @model_validator(mode="after")
    def _one_source(self) -> PromptSource:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("give exactly one of path and dataset")
        return self


class Prompts(Section):
    """Problems to learn from and held-out problems to measure on."""

    train: PromptSource
    test: PromptSource


class Engine(Section):
    """What samples and scores."""

    name: Literal["vllm", "transformers"] = "vllm"
    # float32 where results are compared; bfloat16 noise is about 0.03 nats a token.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    tensor_parallel: Positive = 1
    # Longest prompt and response together, in tokens; the model's own limit by default. A lower one saves KV cache.
    max_length: Positive | None = None
    # Sequences decoded together in one engine.
    max_batch: Positive = 256
    # Share of a GPU's memory for weights and KV cache; on a CPU, the KV cache takes cpu_kv_cache_gib.
    gpu_memory_utilization: Probability = 0.9
    cpu_kv_cache_gib: Positive = 1


class Sampling(Section):
    """How the teacher answers. The paper samples several responses a question; it does not say how many."""

    responses_per_prompt: Positive = 4
    max_tokens: Positive = 65_536
    top_p: Probability = 1.0
    # A shard is what a killed run loses at most, and what replicas share out.
    prompts_per_shard: Positive = 256


class Filters(Section):
    """What never reaches training (paper, section 2.2). The repetition limits are ours: the paper states none.

    They are loose: a limit that drops good reasoning costs more than one that lets a rare loop through.
    """

    # Prompt, response and end of turn must fit packing.context_length, and the student's own positions, in its tokens: no
    # separate limit.
    # Share of the response's n-grams of student tokens that have occurred before in it.
    ngram_size: Positive = 20
    max_repeated_ngrams: Probability = 0.5
    # Times that one sentence or paragraph of at least min_repeated_chars characters may occur.
    max_sentence_repeats: Positive = 20
    max_paragraph_repeats: Positive = 8
    min_repeated_chars: Positive = 24


class Selection(Section):
    """Divergence-aware sampling (paper, section 2.3), or random choice under the same budget.

    Default score: the share of sentences with p_T - p_S > 0.5. A difference of probabilities, not a ratio: a log-ratio
    rewards sentences that both models find unlikely, such as the teacher's own slips.
    """

    method: Literal["divergence", "random"] = "divergence"
    score: Literal["share_above", "mean_difference", "mean_log_ratio"] = "share_above"
    # p_T - p_S above which a sentence counts as Teacher, and below whose negative as Student.
    threshold: Probability = 0.5
    responses_per_prompt: Positive = 1
    # Budget in all; by default every prompt keeps its quota.
    total: Positive | None = None


class Packing(Section):
    """Documents are packed greedily to the context length, each isolated from its neighbours."""

    context_length: Positive = 65_536
    # Off only for studies: documents of a pack then attend to one another.
    isolate_documents: bool = True


class Parallel(Section):
    """How a training stage is split over ranks. Results don't depend on it, so it is no part of an artifact's name."""

    tensor: Positive = 1
    # Splits the activations between tensor-parallel layers, too; without effect where tensor is 1.
    sequence: bool = True
    pipeline: Positive = 1
    # Model chunks a pipeline stage, interleaved: a smaller bubble for more communication.
    virtual_pipeline: Positive = 1
    # Splits every document, for contexts that are too long for one GPU.
    context: Positive = 1
    data: Positive = 1
    # Splits the experts over ranks that are tensor, context or data-parallel elsewhere; adds no ranks.
    expert: Positive = 1
    # Shards optimizer state over the data and context-parallel ranks.
    distributed_optimizer: bool = True

    @property
    def world_size(self) -> int:
        """Number of ranks (processes, and GPUs where there are any)."""
        return self.tensor * self.pipeline * self.context * self.data

    @property
    def splits_sequence(self) -> bool:
        """Whether sequence parallelism is in effect."""
        return self.sequence and self.tensor > 1

    def __str__(self) -> str:
        """The sizes that differ from 1, as they are written in a recipe."""
        sizes = {name: value for name, value in self.model_dump().items() if type(value) is int and value > 1}
        return ", ".join(f"{name}={value}" for name, value in sizes.items()) or "data=1"


class Memory(Section):
    """What training gives up in time for memory. Shapes no result."""

    # Computes activations again in the backward pass: of MLPs or experts (selective), or of whole layers (full).
    recompute: Literal["none", "selective", "full"] = "none"
    # With `full`: so many layers of each model chunk, the others keep their activations; all by default.
    recompute_layers: Positive | None = None
    # Share of the optimizer's state that is kept, and updated, in host memory. Without effect on a CPU.
    offload_optimizer: Probability = 0.0

    @model_validator(mode="after")
    def _layers(self) -> Memory:
        if self.recompute_layers is not None and self.recompute != "full":
            raise ValueError(f"recompute_layers={self.recompute_layers} needs recompute: full")
        return self


class Training(Section):
    """The paper's settings (section 3.1), identical in both sampled stages."""

    epochs: Positive = 6
    # Overrides epochs, for short runs.
    steps: Positive | None = None
    global_batch: Positive = 64  # packs a step
    learning_rate: float = Field(5e-5, gt=0)
    min_learning_rate: float = Field(1e-5, ge=0)
    warmup_ratio: Probability = 0.1
    adam_beta1: Probability = 0.9
    adam_beta2: Probability = 0.95
    adam_eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    clip_grad: float = Field(1.0, gt=0)
    # bf16 keeps fp32 master weights and reduces gradients in fp32.
    precision: Literal["fp32", "bf16"] = "bf16"
    # Matrix products in FP8 (Transformer Engine, Hopper or newer; mxfp8: Blackwell), by how scales are found.
    fp8: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] | None = None
    # So many layers at each end of the model stay in bf16.
    fp8_bf16_layers: NonNegative = 0
    # Weight of the load-balancing loss of a mixture of experts; by default the model's own (router_aux_loss_coef).
    moe_aux_loss_coeff: float | None = Field(None, ge=0)
    save_every: Positive = 100  # steps
    # The newest so many are kept while a stage runs; those at multiples of keep_every steps stay, also after its end.
    keep_checkpoints: Positive = 2
    keep_every: Positive | None = None
    # Checkpoints are written while training goes on; it costs host memory for one copy of the state.
    async_save: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate is above learning_rate")
        if self.fp8 is not None and self.precision != "bf16":
            raise ValueError(f"fp8={self.fp8} needs precision: bf16, not {self.precision}")
        if self.fp8_bf16_layers and self.fp8 in (None, "delayed"):
            raise ValueError(
                f"fp8_bf16_layers={self.fp8_bf16_layers} can't be had with fp8={self.fp8 or 'null'}; choose tensorwise, "
                "blockwise or mxfp8"
            )
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise ValueError(f"keep_every={self.keep_every} is no multiple of save_every={self.save_every}")
        return self

    def total_steps(self, packs: int) -> int:
        """Optimizer steps of a stage: `steps` if given, else as many as `epochs` need (the last batch may begin another)."""
        return self.steps or math.ceil(self.epochs * packs / self.global_batch)


class MixedPolicy(Section):
    """The student begins, the teacher finishes (paper, section 2.4)."""

    prompts: Positive | None = 50_000
    temperature: Temperature = 1.0
    # The student's answer is capped at this multiple of the teacher's length, in student tokens.
    length_cap: float = Field(1.5, gt=0)
    # Cut at a random position from here to the end. Beyond half: the student must have gone astray on its own.
    cut_after: Probability = 0.5
    # The paper keeps truncated answers: there student and teacher part. `wrong` adds those with a wrong final answer.
    keep: Literal["truncated", "truncated_or_wrong"] = "truncated"
    # Off-policy rows of the stage before, for each mixed one (the paper's ablation: 20K to 7.7K).
    off_policy_ratio: float = Field(2.6, ge=0)
    # Masking the student's prefix hurt (AIME24 80.8 against 83.3).
    mask_prefix: bool = False


def _one_message(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Instead of one message for each thing that it might have been."""
    try:
        return validate(value)
    except ValidationError:
        raise ValueError("give a positive whole number of prompts, or one for each domain: {math: 1000}") from None


PromptCount = Annotated[
    Positive | Annotated[dict[str, Positive], Field(min_length=1)],
    WrapValidator(_one_message),
]


class Stage(Section):
    """One training stage. Each starts from the stage before it, the first one from the student."""

    name: Name
    # Temperature at which the teacher was sampled for this stage's data; null for the mixed-policy stage.
    temperature: Temperature | None = None
    # Prompts that a sampled stage's data is made from, in their order: at most so many in all, or exactly so many of each
    # domain, {math: 45_400, code: 20_100}; all by default.
    prompts: PromptCount | None = None
    # Keys of `training` that differ in this stage.
    training: dict[str, Any] = {}

    @model_validator(mode="after")
    def _prompts(self) -> Stage:
        if self.temperature is None and self.prompts is not None:
            raise ValueError(
                f"{self.name} is mixed policy (no temperature): say mixed_policy.prompts instead of prompts"
            )
        return self


class Evaluation(Section):
    """Held-out measures. Paper: T=1.0, top-p 1, 64 samples a problem (avg@64)."""

    # Greedy decoding is always measured besides.
    temperatures: list[Annotated[float, Field(gt=0, le=10)]] = [0.6, 1.0]
    samples: Positive = 64
    max_tokens: Positive = 81_920
    # How an answer is compared with the reference: the exact text, or equal numbers.
    grader: Literal["exact", "number"] = "number"
    # Teacher samples (T=1) on held-out problems, over which KL(teacher || student) is estimated.
    alignment_prompts: Positive = 1000
    problems_per_shard: Positive = 512

    @model_validator(mode="after")
    def _distinct(self) -> Evaluation:
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"temperatures={self.temperatures} names one twice")
        return self


class Expected(Section):
    """What a dry run reckons with before anything is measured. Shapes no result."""

    # A question in its chat template. The paper gives no length; ours is a guess that hardly counts beside the response.
    prompt_tokens: Positive = 300
    # The paper's data at T=1.0: 5.8G tokens in 330K responses.
    response_tokens: Positive = 17_600
    # Mixed policy: answers that reach the cap (paper: 15K of 50K), and continuations that pass the filters (12.7K of 15K).
    truncated_answers: Probability = 0.3
    kept_continuations: Probability = 0.847
    # Shares of a GPU's memory bandwidth (decoding) and of its FLOP/s (scoring, training) that are reached: assumptions.
    bandwidth_share: float = Field(0.4, gt=0, le=1)
    flops_share: float = Field(0.4, gt=0, le=1)


class Resources(Section):
    """What a step's job gets on a cluster. Without effect on one machine."""

    # By default one; for training, as many as its layout (`parallel`) fills.
    nodes: Positive | None = None
    # By default the cluster's; 0 for data steps.
    gpus_per_node: NonNegative | None = None
    # By default a job with GPUs has its nodes' CPUs and memory to itself, another what its partition gives.
    cpus_per_node: Positive | None = None
    # As Slurm writes it, for example 512G.
    memory_per_node: str | None = None
    # Slurm's limit. A step that reaches it is saved, and queued again until it is done.
    time: TimeLimit = "04:00:00"
    # Which of the cluster's images.
    image: str = "training"


class SamplingResources(Resources):
    """Of steps that run an engine: sample, score, answer, continue, evaluate."""

    image: str = "sampling"


class DataResources(Resources):
    """Of steps without a GPU: prompts, filter, select, pack, import, export, report."""

    gpus_per_node: NonNegative | None = 0


class Launch(Section):
    """Where and how wide steps run. Never changes a result."""

    # Engine processes side by side on a machine; by default one for every engine.tensor_parallel GPUs (one without GPUs).
    replicas: Positive | None = None
    # Threads of each process; on shared CPU cores more than one is slower.
    threads: Positive = 1
    # On a cluster, by kind of step.
    training: Resources = Resources()
    sampling: SamplingResources = SamplingResources()
    data: DataResources = DataResources()
    # Keys of these that differ in a single step, by the step's name: {sample_high_temperature: {nodes: 8}}.
    steps: dict[str, dict[str, Any]] = {}
    # Seconds before the time limit when training is told to save: longer than one step and one save take. Where steps.jsonl
    # and saves.jsonl show that they take longer, it is told earlier.
    lead_seconds: Positive = 300
    # Times in a row that a job may crash (a lost node, an NCCL error) without having got further, before it counts as failed.
    retries: NonNegative = 3


class Logging(Section):
    """Where the numbers of training steps go, besides the terminal and steps.jsonl. Shapes no result."""

    # Event files in run_dir/tensorboard.
    tensorboard: bool = True
    # Project of Weights & Biases; the key is taken from the environment (WANDB_API_KEY).
    wandb_project: str | None = None


class Recipe(Section):
    """A whole distillation."""

    name: Name
    run_dir: Path
    seed: NonNegative = 42
    teacher: Model
    student: Model
    prompts: Prompts
    engine: Engine = Engine()
    sampling: Sampling = Sampling()
    # What ends a sentence, as a regular expression that consumes the end. The default: closing punctuation before
    # white space (so that 3.14 holds together), CJK full stops, and line breaks.
    sentence_end: str = r"[.!?]+[\"')\]]*\s+|[。！？]+|\n+"
    filters: Filters = Filters()
    selection: Selection = Selection()
    packing: Packing = Packing()
    training: Training = Training()
    parallel: Parallel = Parallel()
    memory: Memory = Memory()
    mixed_policy: MixedPolicy = MixedPolicy()
    stages: list[Stage] = [
        Stage(name="low_temperature", temperature=0.6),
        Stage(name="high_temperature", temperature=1.0),
        Stage(name="mixed_policy", training={"epochs": 1}),
    ]
    evaluation: Evaluation = Evaluation()
    expected: Expected = Expected()
    launch: Launch = Launch()
    logging: Logging = Logging()

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        names = [stage.name for stage in self.stages]
        if not names:
            raise ValueError("stages is empty: give at least one")
        if len(set(names)) < len(names) or {"student", "teacher"} & set(names):
            raise ValueError("stages need distinct names, other than student and teacher")
        if self.stages[0].temperature is None:
            raise ValueError(
                f"stages.0 ({names[0]}): the first stage needs a temperature; only a later one can be mixed policy"
            )
        try:
            re.compile(self.sentence_end)
        except re.error as error:
            raise ValueError(f"sentence_end={self.sentence_end!r} is no regular expression: {error}") from None
        if self.sampling.max_tokens > self.packing.context_length:
            raise ValueError(
                f"sampling.max_tokens={self.sampling.max_tokens} is above packing.context_length="
                f"{self.packing.context_length}: such a response could never be trained on"
            )
        return self

    def stage_training(self, stage: Stage) -> Training:
        """`training` with this stage's differences."""
        return Training(**{**self.training.model_dump(), **stage.training})
