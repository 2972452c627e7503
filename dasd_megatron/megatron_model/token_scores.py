"""What the model makes of each token of a pack: log-probability, rank and Brier score, from the final hidden states.

Logits are made for a chunk of tokens at a time, each tensor-parallel rank those of its rows of the vocabulary, and dropped once
they are counted: logits of a pack never exist.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from dasd_megatron.megatron_model.vocabulary_head import HeadRows, float32_product, whole_hidden_states

# Logits of one chunk: 128 MiB in fp32, and as much to count in. Each chunk reads the whole head: smaller ones are slower.
CHUNK_ELEMENTS = 32 << 20


def token_scores(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor,
    vocabulary: int,
    sequence_parallel: bool,
    top: int,
) -> torch.Tensor:
    """Of each target, float32 [2 or 3, targets]; the same on all tensor-parallel ranks.

    Rows are its log-probability in nats; its rank, how many tokens are at least as likely, itself included; and with `top` its
    Brier score over that number of likeliest tokens.

    Args:
        hidden_states: [tokens, 1, hidden], output of the final norm; with sequence parallelism, this rank's share of tokens.
        weight: [rows, hidden], this tensor-parallel rank's rows of the head.
        labels: int64 [1, tokens].
        targets: int64 [targets], the positions whose labels are scored.
        vocabulary: size without padding; padded rows count as tokens without any probability.
    """
    head = HeadRows.of(weight, vocabulary)
    hidden = whole_hidden_states(hidden_states, sequence_parallel)
    own_labels = labels[0, targets] - head.first
    scores = torch.empty(3 if top else 2, len(targets), dtype=torch.float32, device=hidden.device)
    size = min(len(targets), max(1, CHUNK_ELEMENTS // weight.shape[0]))
    # The same memory for every chunk: what the system has to clear first costs a CPU half as much as the product.
    memory = torch.empty(2, size, weight.shape[0], dtype=torch.float32, device=hidden.device)
    for start in range(0, len(targets), max(1, size)):
        chunk = slice(start, start + size)
        states = hidden.index_select(0, targets[chunk])
        logits, scratch = memory[:, : len(states)]
        float32_product(states, weight.t(), out=logits)
        logits[:, head.count :] = float("-inf")
        scores[:, chunk] = _chunk_scores(logits, scratch, own_labels[chunk], head, top)
    return scores


def _chunk_scores(
    logits: torch.Tensor, scratch: torch.Tensor, labels: torch.Tensor, head: HeadRows, top: int
) -> torch.Tensor:
    """Scores [2 or 3, tokens] from this rank's logits [tokens, rows], which are lost, as is what was in `scratch`.

    `labels` count from the rank's first row.
    """
    here = (labels >= 0) & (labels < head.count)
    own = logits.gather(1, labels.clamp(0, logits.shape[1] - 1)[:, None])[:, 0].masked_fill_(~here, float("-inf"))
    own, largest = _reduced(torch.stack([own, logits.amax(1)]), dist.ReduceOp.MAX, head.group)
    # As numbers, which are summed several times as fast as truth values; exact: a vocabulary has fewer than 2^24 tokens.
    at_least_as_likely = torch.ge(logits, own[:, None], out=scratch).sum(1)
    brier = [_brier(own, _likeliest(logits, top, head.group))] if top else []
    likelihood = logits.sub_(largest[:, None]).exp_().sum(1)
    likelihood, rank = _reduced(torch.stack([likelihood, at_least_as_likely]), dist.ReduceOp.SUM, head.group)
    return torch.stack([own - largest - likelihood.log(), rank, *brier])


def _reduced(values: torch.Tensor, operation: dist.ReduceOp.RedOpType, group: dist.ProcessGroup) -> torch.Tensor:
    """Over the ranks that share the vocabulary, in place."""
    if group.size() > 1:
        dist.all_reduce(values, op=operation, group=group)
    return values


def _likeliest(logits: torch.Tensor, top: int, group: dist.ProcessGroup) -> torch.Tensor:
    """The `top` largest logits of each token over all ranks, in falling order, [tokens, top]; fewer of a smaller vocabulary."""
    values = logits.topk(min(top, logits.shape[1]))[0]
    if group.size() > 1:
        of_ranks = [torch.empty_like(values) for _ in range(group.size())]
        dist.all_gather(of_ranks, values, group=group)
        every = torch.cat(of_ranks, 1)
        values = every.topk(min(top, every.shape[1]))[0]
    return values


def _brier(own: torch.Tensor, likeliest: torch.Tensor) -> torch.Tensor:
    """Brier scores [tokens] over the likeliest tokens' logits [tokens, top]; a token outside of them has no probability."""
    probabilities = likeliest.softmax(1)
    is_among_them = own >= likeliest[:, -1]
    own_probability = (own - likeliest.logsumexp(1)).exp() * is_among_them
    return 1 - 2 * own_probability + probabilities.square().sum(1)
