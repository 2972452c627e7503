"""How fast an engine writes tokens, by what its GPUs' memory can hold and move. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from dasd_megatron.config.gpu_specs import GIB, GpuSpec
from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.models.parameter_count import parameter_count
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.utils.errors import UserError


def tokens_per_second(
    shape: ModelShape, weights: float, engine: EngineConfig, gpu: GpuSpec, length: float, sequences: float, mbu: float
) -> float:
    """Tokens that one engine (`engine.tensor_parallel` GPUs) decodes in a second, all its sequences together.

    A step reads the weights once (of a mixture of experts all of them: at such batches each is some token's) and every
    sequence's KV cache, and gives each sequence one token:

        batch  = min(engine.max_batch, sequences, memory for KV cache / KV cache of a sequence)
        tokens = batch / ((weights + batch x KV cache of a sequence) / (GPUs x bandwidth x mbu))

    Args:
        weights: bytes, see weight_bytes.
        length: mean tokens of a sequence while it is being written.
        sequences: how many are asked for together.
        mbu: memory bandwidth utilization, the share of it that is reached.

    Raises UserError where the GPUs have no room for one sequence.
    """
    cache = cache_bytes(shape, engine, length)
    batch = min(sequences, fitting_sequences(shape, weights, engine, gpu, length))
    if batch < 1:
        raise UserError(
            f"engine.tensor_parallel={engine.tensor_parallel}: weights of {weights / 1e9:.3g} GB leave no room for a sequence; "
            "raise it"
        )
    return batch * engine.tensor_parallel * gpu.bandwidth * mbu / (weights + batch * cache)


def fitting_sequences(shape: ModelShape, weights: float, engine: EngineConfig, gpu: GpuSpec, length: float) -> int:
    """How many of so many tokens are decoded together: `engine.max_batch`, or those that memory has room for."""
    room = engine.tensor_parallel * gpu.memory_gib * GIB * engine.gpu_memory_utilization - weights
    return min(engine.max_batch, int(room // cache_bytes(shape, engine, length)))


def cache_bytes(shape: ModelShape, engine: EngineConfig, length: float) -> float:
    """KV cache of a sequence; layers with a window keep no more than that."""
    kept = (shape.layers - shape.windowed_layers) * length + shape.windowed_layers * min(length, shape.window)
    return 2 * shape.key_columns * _size(engine) * kept


def weight_bytes(folder: Path, shape: ModelShape, engine: EngineConfig) -> float:
    """Bytes of a model's weights: what its index says, else the size of its files, else of as many parameters."""
    try:
        return float(json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):
        files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return files or _size(engine) * parameter_count(shape)


def _size(engine: EngineConfig) -> int:
    return 4 if engine.dtype == "float32" else 2
