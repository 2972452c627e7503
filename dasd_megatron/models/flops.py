"""How much arithmetic training and scoring take. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from dasd_megatron.config.gpu_specs import GPU_SPECS, GpuName
from dasd_megatron.config.training import TrainingConfig
from dasd_megatron.models.parameter_count import Parameters
from dasd_megatron.models.shape import ModelShape


def training_flops(shape: ModelShape, document_lengths: Iterable[float]) -> float:
    """Model FLOPs of a forward and backward pass over these documents: three times the forward pass's matrix products.

    Attention counts the causal half of each document's square (not of the pack's), in layers with a window the band of it
    that the window leaves; recomputation doesn't count.
    """
    by_token = 2 * (shape.layers * _layer_parameters(shape) + shape.vocabulary * shape.hidden)
    by_pair = 4 * shape.query_columns  # scores and their products with values
    total = 0.0
    for length in document_lengths:
        hidden = max(0, length - shape.window)  # keys that the last token doesn't see, in a layer with a window
        pairs = shape.layers * length**2 / 2 - shape.windowed_layers * hidden**2 / 2
        total += by_token * length + by_pair * pairs
    return 3.0 * total


def fp8_share(shape: ModelShape, tokens: float, flops: float, training: TrainingConfig) -> float:
    """Of the model FLOPs of a step on so many tokens, the share that is done in FP8: none, or that of layers' products.

    Attention and the head stay in bf16, and `fp8_bf16_layers` at each end of the model.
    """
    if training.fp8 is None:
        return 0.0
    return 6 * (shape.layers - 2 * training.fp8_bf16_layers) * _layer_parameters(shape) * tokens / flops


def _layer_parameters(shape: ModelShape) -> int:
    """That a token is multiplied with in a layer."""
    p = Parameters.of(shape)
    return p.attention + p.mlp + shape.top_k * p.expert


def hours(flops: float, gpus: int, gpu: GpuName, mfu: float, fp8_share: float = 0.0) -> float:
    """Time to compute these model FLOPs at this MFU: the share of what the GPUs could do at their peak, in each precision."""
    return flops / (gpus * GPU_SPECS[gpu].peak(fp8_share) * mfu) / 3600
