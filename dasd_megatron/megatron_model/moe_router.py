"""The router of a mixture of experts, with a load-balancing loss that doesn't depend on the parallel layout."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.router import TopKRouter


class PackRouter(TopKRouter):  # type: ignore[misc]
    """Megatron's router; its auxiliary loss is the mean over the batch's packs, by their tokens without padding.

    Megatron weighs the loss on each rank by what it takes for that rank's own tokens, times the number of ranks that share
    the pack. That is the pack's tokens only where padding is spread evenly; and the count is reduced over these ranks
    in place before it is used (`get_tokens_per_expert_and_token_count`), so that it is the ranks' number too high. All
    gradients are then divided by the batch's targets, which are fewer than its tokens.
    """

    # Of the global batch that is being trained on.
    targets_per_token: float = 1.0

    def routing(
        self, logits: torch.Tensor, padding_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert padding_mask is not None, "the trainer always passes one"
        self._pack_tokens = (~padding_mask).sum().float()
        dist.all_reduce(self._pack_tokens, group=self.tp_cp_group)
        probabilities, routing_map = super().routing(logits, padding_mask)
        return probabilities, routing_map

    def attach_and_log_load_balancing_loss(
        self,
        activation: torch.Tensor,
        aux_loss_coeff: float,
        aux_loss: torch.Tensor,
        aux_loss_name: str,
        reduce_group: dist.ProcessGroup,
        needs_dp_avg: bool = True,
        valid_token_count: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See TopKRouter, which multiplies the count by the number of ranks in `tp_cp_group`."""
        count = self._pack_tokens * PackRouter.targets_per_token / self.tp_cp_group.size()
        attached: torch.Tensor = super().attach_and_log_load_balancing_loss(
            activation, aux_loss_coeff, aux_loss, aux_loss_name, reduce_group, needs_dp_avg, count
        )
        return attached


def use_pack_router(mlp: Any) -> Any:
    """A layer spec's builder of mixture-of-experts layers, made to use PackRouter."""
    mlp.keywords["submodules"].router = PackRouter
    return mlp
