"""What stands in for Transformer Engine's permutation, beside its Triton kernels in their interpreter: python -m ... FOLDER"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

TOKENS, EXPERTS, HIDDEN = 9, 5, 8


def main(arguments: list[str] | None = None) -> None:
    from tests.helpers.te_on_cpu.install import install_if_asked

    install_if_asked()
    import transformer_engine.pytorch.triton.permutation as kernels

    from tests.helpers.te_on_cpu import permutation as ours
    from tests.helpers.te_on_cpu.device import plain_torch, tracked

    results: dict[str, list[list[torch.Tensor]]] = {}
    for module in (kernels, ours):
        torch.manual_seed(0)
        with plain_torch():
            routing = torch.rand(TOKENS, EXPERTS) < 0.4
            routing[3] = False
            inp, scale = torch.randn(TOKENS, HIDDEN), torch.rand(TOKENS, 2)
            probs = torch.rand(TOKENS, EXPERTS) * routing
            probs[0] = 0.0  # padding
            sizes = routing.sum(0)
            pads = torch.arange(EXPERTS) * 2
            rows = int(sizes.sum() + 2 * EXPERTS)
        with tracked():
            row_map = module.make_row_id_map(routing, TOKENS, EXPERTS)
            used = [row_map[:, -1]]
            for token, count in enumerate(row_map[:, -1].tolist()):
                used += [row_map[token, :count], row_map[token, EXPERTS : EXPERTS + count]]
            results.setdefault("map", []).append(used)
            permuted = module.permute_with_mask_map(
                inp, row_map, probs, scale, pads, TOKENS, EXPERTS, rows, HIDDEN, scale.shape[1]
            )
            results.setdefault("permuted", []).append(list(permuted))
            back = module.unpermute_with_mask_map(
                permuted[0], row_map, probs, permuted[2], pads, TOKENS, EXPERTS, HIDDEN
            )
            results.setdefault("back", []).append(list(back))
            order = torch.tensor([2, 0, 4, 1, 3], device="cuda")
            chunks = module.make_chunk_sort_map(sizes.to(torch.int32), order, int(sizes.sum()) + 2, EXPERTS)
            whole = permuted[0][: len(chunks)].contiguous()
            sorted_, of_probs = module.sort_chunks_by_map(
                whole, chunks, permuted[2][: len(chunks)], len(chunks), HIDDEN, True
            )
            again, _ = module.sort_chunks_by_map(sorted_, chunks, None, len(chunks), HIDDEN, False)
            results.setdefault("chunks", []).append([chunks, sorted_, of_probs, again])
    with plain_torch():
        for name, (expected, found) in results.items():
            for one, other in zip(expected, found, strict=True):
                assert torch.equal(one, other), (name, one, other)
    Path((arguments or sys.argv[1:])[0]).write_text("the same")


if __name__ == "__main__":
    main()
