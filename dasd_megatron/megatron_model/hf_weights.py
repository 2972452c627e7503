"""Weights of a Hugging Face folder, straight into the model's chunks on any rank of any layout, without a checkpoint between."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.models.gpt import GPTModel

from dasd_megatron.megatron_model.weights import sharded_weights
from dasd_megatron.models.hf_model import HFModel


def load_hf_weights(chunks: Sequence[GPTModel], hf: HFModel) -> None:
    """Fills this rank's parameters, in their own precision. Raises UserError where the folder isn't whole or not that model.

    A rank reads what its parameters are made from, one parameter at a time: of its pipeline stage's layers, and its own experts.
    """
    hf.check_tensors()
    parts = {(part.key, part.index): part for part in hf.parts}
    # What a checkpoint would have of this rank: where each of its tensors lies in the whole model. They are views of parameters.
    state = sharded_weights(chunks)
    apply_factories(state)
    read, whole, filled = None, torch.empty(0), set[int]()
    with torch.no_grad():
        for tensor in nested_values(state):
            if not isinstance(tensor, ShardedTensor):
                continue
            axes = len(tensor.global_shape) - len(tensor.local_shape)
            part = parts[tensor.key, tuple(tensor.global_offset[:axes])]
            if part is not read:  # gate and up projection are two tensors of one parameter
                read, whole = part, hf.parameter(part)
            begin = tensor.global_offset[axes:]
            source = whole[tuple(slice(at, at + size) for at, size in zip(begin, tensor.local_shape, strict=True))]
            if source.shape != tensor.data.shape:  # the vocabulary's padding
                tensor.data.zero_()
            tensor.data[tuple(slice(size) for size in source.shape)].copy_(source)
            filled.add(tensor.data.untyped_storage().data_ptr())
    parameters = (parameter for chunk in chunks for parameter in chunk.parameters())
    assert all(parameter.untyped_storage().data_ptr() in filled for parameter in parameters), "a parameter isn't filled"
