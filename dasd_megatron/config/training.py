"""Training stages: `training`, `parallel`, `memory`, `logging`."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from dasd_megatron.config.base import Config, ExecutionOnly, NonNegative, Positive, Probability


class ParallelConfig(Config):
    """How a training stage is split over ranks. Results don't depend on it, so it is no part of an artifact's name."""

    tensor: Positive = 1
    """Splits matrices and attention heads."""

    sequence: bool = True
    """Splits the activations between tensor-parallel layers, too; without effect where tensor is 1."""

    pipeline: Positive = 1
    """Splits the layers into stages."""

    virtual_pipeline: Positive = 1
    """Model chunks a pipeline stage, interleaved: a smaller bubble for more communication."""

    context: Positive = 1
    """Splits every document, for contexts that are too long for one GPU."""

    context_comm: Literal["p2p", "a2a"] = "p2p"
    """What context-parallel ranks exchange: keys and values around a ring (p2p), or tokens for heads (a2a: fewer messages, and
    tensor x context must divide the key-value heads). Attention with sinks is always a2a. Without effect on a CPU."""

    data: Positive = 1
    """Splits the packs of a global batch."""

    expert: Positive = 1
    """Splits the experts over ranks that are tensor, context or data-parallel elsewhere; adds no ranks."""

    distributed_optimizer: bool = True
    """Shards optimizer state over the data and context-parallel ranks."""

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


class MemoryConfig(Config):
    """What training gives up in time for memory. Shapes no result."""

    recompute: Literal["none", "selective", "full"] = "none"
    """Computes activations again in the backward pass: of MLPs, or of experts but not the exchange of tokens (selective); or of
    whole layers (full)."""

    recompute_layers: Positive | None = None
    """With `full`: this number of layers of each model chunk, the others keep their activations; all by default."""

    offload_optimizer: Probability = 0.0
    """Share of the optimizer's state that is kept, and updated, in host memory. Without effect on a CPU."""

    @model_validator(mode="after")
    def _layers(self) -> MemoryConfig:
        if self.recompute_layers is not None and self.recompute != "full":
            raise ValueError(f"recompute_layers={self.recompute_layers} needs recompute: full")
        return self


class TrainingConfig(Config):
    """The paper's settings (section 3.1), identical in both sampled stages."""

    epochs: Positive = 6
    """Passes over the stage's packs."""

    steps: Positive | None = None
    """Optimizer steps; overrides epochs, for short runs."""

    global_batch: Positive = 64
    """Packs an optimizer step."""

    learning_rate: float = Field(5e-5, gt=0)
    """Peak, reached at the end of the warm-up."""

    min_learning_rate: float = Field(1e-5, ge=0)
    """At the end of the cosine decay."""

    warmup_ratio: Probability = 0.1
    """Share of the steps in which the learning rate rises."""

    adam_beta1: Probability = 0.9
    """Decay of AdamW's first moment."""

    adam_beta2: Probability = 0.95
    """Decay of AdamW's second moment."""

    adam_eps: float = Field(1e-8, gt=0)
    """Added to the root of AdamW's second moment."""

    weight_decay: float = Field(0.1, ge=0)
    """Of matrices; norms and biases are not decayed."""

    clip_grad: float = Field(1.0, gt=0)
    """Largest gradient norm; larger gradients are scaled down to it."""

    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 keeps fp32 master weights and reduces gradients in fp32."""

    fp8: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] | None = None
    """Matrix products in FP8 (Transformer Engine, Hopper or newer; mxfp8: Blackwell), by how scales are found."""

    fp8_bf16_layers: NonNegative = 0
    """This number of layers at each end of the model stay in bf16."""

    attention: ExecutionOnly[Literal["auto", "cudnn", "flash"]] = "auto"
    """The attention of Transformer Engine that is used on GPUs: cuDNN's, FlashAttention's (3, or 2 where only that is installed),
    or its own choice. An unfused one is refused above 4,096 tokens. Without effect on a CPU."""

    moe_aux_loss_coeff: float | None = Field(None, ge=0)
    """Weight of the load-balancing loss of a mixture of experts; by default the model's own (router_aux_loss_coef)."""

    held_out_every: ExecutionOnly[Positive] = 100
    """Optimizer steps between measurements of the loss on held-out packs (packing.held_out): a global batch of them, always the
    same. It is measured after the last step, too."""

    profile: ExecutionOnly[tuple[Positive, Positive] | None] = None
    """`[from, to]`: optimizer steps that the first rank profiles, for Perfetto or chrome://tracing."""

    save_every: ExecutionOnly[Positive] = 100
    """Optimizer steps between checkpoints."""

    keep_checkpoints: ExecutionOnly[Positive] = 2
    """This number of the newest are kept while a stage runs."""

    keep_every: ExecutionOnly[Positive | None] = None
    """Checkpoints at multiples of this number of steps stay, also after the stage's end."""

    async_save: ExecutionOnly[bool] = True
    """Checkpoints are written while training continues; it costs host memory for one copy of the state."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainingConfig:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError("min_learning_rate is above learning_rate")
        if self.fp8 is not None and self.precision != "bf16":
            raise ValueError(f"fp8={self.fp8} needs precision: bf16, not {self.precision}")
        if self.fp8_bf16_layers and self.fp8 in (None, "delayed"):
            raise ValueError(
                f"fp8_bf16_layers={self.fp8_bf16_layers} can't be had with fp8={self.fp8 or 'null'}; choose tensorwise, "
                "blockwise or mxfp8"
            )
        if self.profile is not None and self.profile[0] > self.profile[1]:
            raise ValueError(f"profile={list(self.profile)} ends before it begins")
        if self.keep_every is not None and self.keep_every % self.save_every:
            raise ValueError(f"keep_every={self.keep_every} is no multiple of save_every={self.save_every}")
        return self

    def total_steps(self, packs: int) -> int:
        """Optimizer steps of a stage: `steps` if given, else as many as `epochs` need (the last batch may begin another)."""
        return self.steps or math.ceil(self.epochs * packs / self.global_batch)


class LoggingConfig(Config):
    """Where the metrics of training go, beside the terminal and metrics.jsonl. Shapes no result."""

    every: Positive = 1
    """Optimizer steps between two looks at the numbers. At each a GPU's queue runs empty, which costs short steps some percent; a
    loss that is no number is noticed then, and before each checkpoint. Times of the steps between are their mean."""

    tensorboard: bool = True
    """Event files in run_dir/tensorboard."""

    wandb_project: str | None = None
    """Project of Weights & Biases; the key is taken from the environment (WANDB_API_KEY)."""
