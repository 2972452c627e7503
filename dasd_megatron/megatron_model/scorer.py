"""One rank's part of scoring packed documents with the model that is trained, the same code in every layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from numpy.typing import NDArray

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.megatron_model.attention_backend import check_attention_variables
from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
from dasd_megatron.megatron_model.hf_weights import load_hf_weights
from dasd_megatron.megatron_model.micro_batch import MicroBatch, Pack, make_micro_batches, padding_mask
from dasd_megatron.megatron_model.packed_documents import rank_tokens
from dasd_megatron.megatron_model.token_scores import token_scores
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.models.pack_padding import alignment, document_slots


@dataclass(frozen=True)
class ScoredTokens:
    """What a rank knows of a pack's tokens.

    Attributes:
        tokens: int64 [n], which tokens of the pack, padding not counted.
        scores: float32 [2 or 3, n], see token_scores.
    """

    tokens: NDArray[np.int64]
    scores: NDArray[np.float32]


class Scorer:
    """This rank's share of the model, and its forward passes."""

    def __init__(self, hf: HFModel, parallel: ParallelConfig, dtype: torch.dtype) -> None:
        """Loads the weights of the folder. Raises UserError where that can't be done."""
        check_attention_variables()
        # No load-balancing loss: nothing is trained.
        options = ModelOptions(dtype, moe_aux_loss_coeff=0.0 if hf.shape.experts else None)
        self._hf, self._parallel = hf, parallel
        self._align = alignment(parallel, None)
        [self._chunk] = build_model(hf, parallel, options, max_length=hf.max_positions or 1)
        load_hf_weights([self._chunk], hf)
        self._chunk.eval()
        self._device = next(self._chunk.parameters()).device
        self._forward_backward = get_forward_backward_func()

    @torch.no_grad()
    def score(self, packs: Sequence[Pack], top: int) -> list[ScoredTokens]:
        """Of each pack, what this rank has to say: nothing ([]) on all but the last pipeline stage, and on all tensor-parallel
        ranks but the first, which know the same. Called on every rank with the same packs.

        Of a pack, context-parallel ranks score the labels that they hold. `top`: see token_scores.
        """
        ranks, rank = self._parallel.context, parallel_state.get_context_parallel_rank()
        batches = make_micro_batches(packs, self._align, ranks, rank)
        outputs = self._forward_backward(
            forward_step_func=partial(self._forward, top),
            data_iterator=iter(batches),
            model=self._chunk,
            num_microbatches=len(batches),
            seq_length=batches[0].input_ids.shape[1] * ranks,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
        if not outputs or parallel_state.get_tensor_model_parallel_rank():
            return []
        length = batches[0].input_ids.shape[1] * ranks
        return [
            ScoredTokens(self._scored(pack, batch, length, rank), scores.cpu().numpy())
            for pack, batch, scores in zip(packs, batches, outputs, strict=True)
        ]

    def _forward(self, top: int, batches: Iterator[MicroBatch], chunk: GPTModel) -> tuple[torch.Tensor, Any]:
        """Megatron's forward step: the chunk's output, of the last one the scores, and what makes it the result."""
        batch = next(batches).to(self._device)
        output = chunk(
            batch.input_ids,
            batch.position_ids,
            attention_mask=None,
            packed_seq_params=batch.documents,
            output_processor=partial(self._scores, batch, top),
            padding_mask=padding_mask(batch, chunk) if self._hf.shape.experts else None,
        )
        return output, lambda output, non_loss_data: output

    def _scores(self, batch: MicroBatch, top: int, hidden_states: torch.Tensor, **helpers: Any) -> torch.Tensor:
        """Output of the last chunk, from its hidden states (Megatron's `output_processor`)."""
        weight = helpers["output_weight"]  # of tied embeddings
        return token_scores(
            hidden_states,
            helpers["output_layer"].weight if weight is None else weight,
            batch.labels,
            batch.targets,
            self._hf.shape.vocabulary,
            self._parallel.splits_sequence,
            top,
        )

    def _scored(self, pack: Pack, batch: MicroBatch, length: int, rank: int) -> NDArray[np.int64]:
        """Which tokens of the pack are the labels that `token_scores` scores on this rank."""
        slots = document_slots(pack.lengths, self._align, length)
        held = rank_tokens(slots, self._parallel.context, rank)[batch.targets].numpy()
        padding = np.cumsum([0, *slots])[: len(pack.lengths)] - [0, *accumulate(pack.lengths[:-1])]
        document = np.searchsorted(np.cumsum(slots), held, side="right")
        # The label at a position is the token after it.
        return np.asarray(held - padding[document] + 1, np.int64)
