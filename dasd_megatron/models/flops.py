"""How much arithmetic training and scoring take. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from dasd_megatron.config.gpu_specs import GPU_SPECS, GpuName
from dasd_megatron.models.parameter_count import Parameters
from dasd_megatron.models.shape import ModelShape


def training_flops(shape: ModelShape, document_lengths: Iterable[float]) -> float:
    """Model FLOPs of a forward and backward pass over these documents: three times the forward pass's matrix products.

    Attention counts the causal half of each document's square (not of the pack's), in layers with a window the band of it
    that the window leaves; recomputation doesn't count.
    """
    p = Parameters.of(shape)
    layer = p.attention + p.mlp + shape.top_k * p.expert
    by_token = 2 * (shape.layers * layer + shape.vocabulary * shape.hidden)
    by_pair = 4 * shape.query_columns  # scores and their products with values
    total = 0.0
    for length in document_lengths:
        hidden = max(0, length - shape.window)  # keys that the last token doesn't see, in a layer with a window
        pairs = shape.layers * length**2 / 2 - shape.windowed_layers * hidden**2 / 2
        total += by_token * length + by_pair * pairs
    return 3.0 * total


def hours(flops: float, gpus: int, gpu: GpuName, fp8: bool, mfu: float) -> float:
    """Time to compute these model FLOPs at this MFU: the share of the GPUs' peak in bf16 (in FP8 where it has that)."""
    return flops / (gpus * GPU_SPECS[gpu].peak(fp8) * mfu) / 3600
