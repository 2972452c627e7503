"""What GPUs can do, by NVIDIA's data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dasd_megatron.config.training import TrainingConfig

# Without a fused kernel attention has a document's scores in memory as a whole: at 32K tokens 137 GB for 32 heads in float32.
UNFUSED_TOKENS = 4096
GpuName = Literal["a100", "h100", "h200", "b200"]
GIB = 1 << 30
# FP8 recipe -> least compute capability, and the generation that has it.
CAPABILITY = {
    "delayed": ((8, 9), "Ada or Hopper"),
    "tensorwise": ((8, 9), "Ada or Hopper"),
    "blockwise": ((9, 0), "Hopper"),
    "mxfp8": ((10, 0), "Blackwell"),
}


@dataclass(frozen=True)
class GpuSpec:
    """What a GPU can do.

    Attributes:
        bf16, fp8: dense peak of matrix products, in FLOP/s; None where it has no FP8.
        memory_gib: its memory, in GiB.
        bandwidth: of its memory, in bytes/s.
        nvlink: to the GPUs of its node, in bytes/s in one direction.
        network: its share of the node's adapters, in bytes/s in one direction.
        capability: CUDA's compute capability.
    """

    bf16: float
    fp8: float | None
    memory_gib: int
    bandwidth: float
    nvlink: float
    network: float
    capability: tuple[int, int]

    def peak(self, fp8_share: float = 0.0) -> float:
        """FLOP/s of work of which this share is done in FP8, where it has that, and the rest in bf16."""
        return 1 / ((1 - fp8_share) / self.bf16 + fp8_share / (self.fp8 or self.bf16))


GPUS_PER_NODE = 8

# A100 with 80 GB, all with SXM, in NVIDIA's DGX.
GPU_SPECS: dict[GpuName, GpuSpec] = {
    "a100": GpuSpec(312e12, None, 80, 2.0e12, 300e9, 25e9, (8, 0)),
    "h100": GpuSpec(989e12, 1979e12, 80, 3.35e12, 450e9, 50e9, (9, 0)),
    "h200": GpuSpec(989e12, 1979e12, 141, 4.8e12, 450e9, 50e9, (9, 0)),
    "b200": GpuSpec(2250e12, 4500e12, 180, 8.0e12, 900e9, 50e9, (10, 0)),
}


def precision_problem(
    training: TrainingConfig, context_length: int, capability: tuple[int, int], transformer_engine: bool = True
) -> str | None:
    """Why a stage can't compute in its precision on a GPU of this compute capability, and what to do; None where it can."""
    if training.precision == "fp32" and context_length > UNFUSED_TOKENS:
        return (
            f"training.precision=fp32: fused attention takes bf16 alone on a GPU, and packs of {context_length:,} tokens need it "
            f"(more than {UNFUSED_TOKENS:,}); set training.precision=bf16"
        )
    problem = None if training.fp8 is None else fp8_problem(training.fp8, capability, transformer_engine)
    return None if problem is None else f"training.fp8={training.fp8} {problem}; choose another, or another GPU"


def fp8_problem(fp8: str, capability: tuple[int, int], transformer_engine: bool) -> str | None:
    """What an FP8 recipe lacks on a GPU of this compute capability; None where it can be used."""
    needed, generation = CAPABILITY[fp8]
    if capability < needed:
        return (
            f"needs a GPU of compute capability {needed[0]}.{needed[1]} ({generation}) or newer, and this one's is "
            f"{capability[0]}.{capability[1]}"
        )
    return None if transformer_engine else "needs Transformer Engine, which isn't installed"
