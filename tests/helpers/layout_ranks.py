"""What tests run on every rank of a layout: python -m tests.helpers.layout_ranks FUNCTION LAYOUT_JSON ARGUMENTS_JSON OUT.

Under torchrun, forked_ranks, or alone as the only rank. Rank r writes what the function returns to OUT-r.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from dasd_megatron.config.training import ParallelConfig
from tests.helpers.forked_ranks import forked


def run_on_ranks(function: str, parallel: ParallelConfig, out: Path, **arguments: Any) -> list[Any]:
    """Calls a function of this module on every rank; returns what each returned."""
    code, output = forked(
        __name__,
        [function, parallel.model_dump_json(), json.dumps(arguments), str(out)],
        parallel.world_size,
        timeout=600,
    )
    assert code == 0, output[-3000:]
    return [json.loads(Path(f"{out}-{rank}.json").read_text()) for rank in range(parallel.world_size)]


def fused_loss(parallel: ParallelConfig, vocabulary: int, tile_elements: int) -> dict[str, float]:
    """Relative differences of the fused loss from the eager one, in value and gradients."""
    import torch
    from megatron.core import parallel_state

    from dasd_megatron.megatron_model.build_model import padded_vocabulary
    from dasd_megatron.models import loss_tiles
    from dasd_megatron.training import fused_loss

    loss_tiles.TILE_ELEMENTS, fused_loss.COLUMNS = {"cpu": tile_elements}, 256
    size, rank = parallel.tensor, parallel_state.get_tensor_model_parallel_rank()
    generator = torch.Generator().manual_seed(0)
    tokens, hidden, rows = 64, 48, padded_vocabulary(vocabulary, size)
    states = torch.randn(tokens, 1, hidden, generator=generator)
    weight = torch.randn(rows, hidden, generator=generator)
    labels = torch.randint(0, vocabulary, (1, tokens), generator=generator)
    mask = (torch.rand(1, tokens, generator=generator) < 0.7).float()

    eager_states, eager_weight = states.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = (eager_states[:, 0] @ eager_weight[:vocabulary].t()).float()
    expected = (torch.nn.functional.cross_entropy(logits, labels[0], reduction="none") * mask[0]).sum()
    expected.backward()

    own_states = (states.chunk(size)[rank] if parallel.splits_sequence else states).clone().requires_grad_()
    own_weight = weight.chunk(size)[rank].clone().requires_grad_()
    targets = mask[0].nonzero()[:, 0]
    found = fused_loss.loss_sum(own_states, own_weight, labels, targets, vocabulary, parallel.splits_sequence)
    found.backward()
    grad_states = eager_states.grad.chunk(size)[rank] if parallel.splits_sequence else eager_states.grad

    def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        return float((ours - theirs).detach().norm() / theirs.detach().norm())

    return {
        "loss": difference(found, expected),
        "hidden": difference(own_states.grad, grad_states),
        "weight": difference(own_weight.grad, eager_weight.grad.chunk(size)[rank]),
    }


def scores_of_tokens(parallel: ParallelConfig, vocabulary: int, chunk_elements: int, top: int) -> dict[str, float]:
    """Differences of scores that are made chunk by chunk from those of all logits at once: of log-probabilities and Brier scores
    the largest, of ranks the number."""
    import numpy as np
    import torch
    from megatron.core import parallel_state

    from dasd_megatron.megatron_model import token_scores
    from dasd_megatron.megatron_model.build_model import padded_vocabulary
    from dasd_megatron.sampling.engines.engine import brier_scores

    token_scores.CHUNK_ELEMENTS = chunk_elements
    size, rank = parallel.tensor, parallel_state.get_tensor_model_parallel_rank()
    generator = torch.Generator().manual_seed(0)
    tokens, hidden, rows = 64, 48, padded_vocabulary(vocabulary, size)
    # Of whole numbers, so that sums are exact in any order, and many tokens are equally likely.
    states = torch.randint(-2, 3, (tokens, 1, hidden), generator=generator).float()
    weight = torch.randint(-1, 2, (rows, hidden), generator=generator) / 4
    weight[vocabulary:] = 100  # padding, which has no probability
    labels = torch.randint(0, vocabulary, (1, tokens), generator=generator)
    mask = (torch.rand(1, tokens, generator=generator) < 0.7).float()

    kept = mask[0] > 0
    logprobs = (states[kept, 0] @ weight[:vocabulary].t()).log_softmax(1)
    logits, own = states[kept, 0] @ weight[:vocabulary].t(), labels[0, kept][:, None]
    likeliest = logprobs.topk(min(top, vocabulary))

    own_states = states.chunk(size)[rank] if parallel.splits_sequence else states
    share = weight.chunk(size)[rank]
    with torch.no_grad():
        found = token_scores.token_scores(
            own_states, share, labels, mask[0].nonzero()[:, 0], vocabulary, parallel.splits_sequence, top
        ).numpy()
    # Where the token is as likely as the last of the likeliest, whether it is among them is a matter of order.
    certain = (logits.gather(1, own)[:, 0] != logits.gather(1, likeliest.indices[:, -1:])[:, 0]).numpy()
    brier = brier_scores(likeliest.values.numpy(), (likeliest.indices == own).numpy())
    return {
        "logprobs": float(np.abs(found[0] - logprobs.gather(1, own)[:, 0].numpy()).max()),
        "ranks": int((found[1] != (logits >= logits.gather(1, own)).sum(1).numpy()).sum()),
        "brier": float(np.abs(found[2] - brier)[certain].max(initial=0)),
    }


def isolation(
    parallel: ParallelConfig, model: str, checkpoint: str, lengths: list[int], isolate: bool
) -> dict[str, float]:
    """How much the logits change when the second document changes: its own, and the largest change of any other."""
    import numpy as np
    import torch
    from megatron.core import parallel_state
    from megatron.core.pipeline_parallel import get_forward_backward_func

    from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
    from dasd_megatron.megatron_model.micro_batch import Pack, make_micro_batches
    from dasd_megatron.megatron_model.packed_documents import rank_tokens
    from dasd_megatron.megatron_model.weights import load_weights
    from dasd_megatron.models.hf_model import HFModel
    from dasd_megatron.models.pack_padding import alignment, document_slots

    chunks = build_model(HFModel(Path(model)), parallel, ModelOptions(), 512)
    load_weights(chunks, Path(checkpoint))
    align, rank = alignment(parallel, None), parallel_state.get_context_parallel_rank()
    ids = np.random.default_rng(0).integers(0, 131, sum(lengths)).astype(np.int32)
    first, end = lengths[0], lengths[0] + lengths[1]
    changed = ids.copy()
    changed[first:end] = (changed[first:end] + 1) % 131
    seen = lengths if isolate else [sum(lengths)]

    def logits(values: Any) -> torch.Tensor | None:
        pack = Pack(values, np.ones(len(values), np.bool_), seen)
        [batch] = make_micro_batches([pack], align, parallel.context, rank)

        def forward(_: Any, chunk: Any) -> tuple[torch.Tensor, Any]:
            output = chunk(batch.input_ids, batch.position_ids, attention_mask=None, packed_seq_params=batch.documents)
            return output, lambda output, non_loss_data: output

        with torch.no_grad():
            outputs = get_forward_backward_func()(
                forward_step_func=forward,
                data_iterator=[iter([]) for _ in chunks],
                model=chunks,
                num_microbatches=parallel.pipeline,  # what the interleaved schedule asks for; all alike
                seq_length=batch.input_ids.shape[1] * parallel.context,
                micro_batch_size=1,
                forward_only=True,
                collect_non_loss_data=True,
            )
        return outputs[0][0] if outputs else None

    before, after = logits(ids), logits(changed)
    if before is None or after is None:  # not the last pipeline stage
        return {"own": 0.0, "others": 0.0}
    slots = document_slots(seen, align)
    held = rank_tokens(slots, parallel.context, rank)
    padded_first = slots[0] if isolate else first
    padded_end = padded_first + (slots[1] if isolate else lengths[1])
    own = (held >= padded_first) & (held < padded_end)
    change = (before - after).abs().amax(1)
    return {"own": float(change[own].max()), "others": float(change[~own].max())}


def resave(parallel: ParallelConfig, model: str, checkpoint: str, target: str) -> None:
    """Loads a checkpoint in this layout and writes its weights again."""
    from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
    from dasd_megatron.megatron_model.weights import load_weights
    from dasd_megatron.models.hf_model import HFModel
    from dasd_megatron.training.checkpoint.checkpoints import save_weights

    hf = HFModel(Path(model))
    chunks = build_model(hf, parallel, ModelOptions(), 512)
    load_weights(chunks, Path(checkpoint))
    save_weights(chunks, hf, Path(target))


if __name__ == "__main__":
    from dasd_megatron.utils.child_process import die_with_launcher

    die_with_launcher()
    import torch.distributed as dist

    from dasd_megatron.megatron_model.process_groups import process_groups

    function, layout, arguments, out = sys.argv[1:]
    parallel = ParallelConfig(**json.loads(layout))
    with process_groups(parallel, 0):
        result = globals()[function](parallel, **json.loads(arguments))
        Path(f"{out}-{dist.get_rank()}.json").write_text(json.dumps(result))
