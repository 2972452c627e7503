"""AdamW on the CPU with the interface and state of Transformer Engine's FusedAdam.

Megatron's optimizers keep the step count in the parameter group, as FusedAdam does; torch's own Adam keeps it a parameter, and
its state can't be resumed from. The arithmetic is torch's fused kernel.
"""

from __future__ import annotations

from typing import Any

import torch


class ReferenceAdam(torch.optim.Optimizer):
    """AdamW; state `exp_avg` and `exp_avg_sq` a parameter, `step` a group."""

    # Without what keeps the compiler away from them, which would load the compiler: a second of each rank's start.
    add_param_group = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
    zero_grad = torch.optim.Optimizer.zero_grad.__wrapped__  # type: ignore[attr-defined]
    state_dict = torch.optim.Optimizer.state_dict.__wrapped__  # type: ignore[attr-defined]
    load_state_dict = torch.optim.Optimizer.load_state_dict.__wrapped__  # type: ignore[attr-defined]

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **_: Any,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            params = [param for param in group["params"] if param.grad is not None]
            for param in params:
                if not self.state[param]:
                    self.state[param] |= {"exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
            if not params:
                continue
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(
                params,
                [param.grad for param in params],
                [self.state[param]["exp_avg"] for param in params],
                [self.state[param]["exp_avg_sq"] for param in params],
                [],
                [torch.tensor(float(group["step"])) for _ in params],
                lr=float(group["lr"]),
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )


def use_reference_adam() -> None:
    """Makes Megatron use this Adam where neither Transformer Engine nor apex is installed."""
    import megatron.core.optimizer as optimizer
    import megatron.core.optimizer.distrib_optimizer as distributed

    if optimizer.USING_PYTORCH_OPTIMIZER:
        optimizer.Adam, optimizer.USING_PYTORCH_OPTIMIZER = ReferenceAdam, False
        distributed.Adam, distributed.HAVE_APEX_OR_TE = ReferenceAdam, True
