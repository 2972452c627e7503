"""Triton kernels of the cross-entropy where there is no GPU; Triton must be importable.

TRITON_INTERPRET=1 python -m tests.helpers.triton_kernels: their largest differences from plain PyTorch, by case, as JSON.
python -m tests.helpers.triton_kernels 90: compiles them for GPUs of compute capability 9.0; prints bytes of machine code.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch

from dasd_megatron.training import cross_entropy_kernels
from dasd_megatron.training.cross_entropy import logit_gradients, row_statistics

# Tokens, columns, and whether the logits are columns of a wider tensor.
CASES = ((5, 64, False), (7, 131, False), (3, 200, True), (1, 1, False), (0, 10, False))


def differences(tokens: int, columns: int, is_part: bool, dtype: torch.dtype) -> dict[str, float]:
    """Of statistics (relative), of the label's logit, and of gradients."""
    logits = torch.randn(tokens, columns + 30 * is_part) * 20
    logits = logits[:, 10 : 10 + columns] if is_part else logits
    labels = torch.randint(-3, columns + 3, (tokens,))
    expected, found = row_statistics(logits, labels), cross_entropy_kernels.fused_row_statistics(logits, labels)
    log_sum = expected[0] + expected[1].log()
    gradients = cross_entropy_kernels.fused_logit_gradients(logits, labels, log_sum, dtype)
    assert gradients.dtype is dtype
    wanted = logit_gradients(logits.clone(), labels, log_sum, dtype)
    return {
        "largest": float((expected[0] - found[0]).abs().amax()) if tokens else 0.0,
        "total": float(((expected[1] - found[1]) / expected[1]).abs().amax()) if tokens else 0.0,
        "chosen": float((expected[2] - found[2]).abs().amax()) if tokens else 0.0,
        "gradients": float((gradients - wanted).float().abs().amax()) if tokens else 0.0,
    }


def compiled(capability: int) -> dict[str, int]:
    """Bytes of each kernel's machine code."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    inputs = {"logits": "*fp32", "labels": "*i64", "columns": "i32", "stride": "i64", "BLOCK": "constexpr"}
    outputs: dict[Any, dict[str, str]] = {
        cross_entropy_kernels._row_statistics: {"largest": "*fp32", "total": "*fp32", "chosen": "*fp32"},
        cross_entropy_kernels._logit_gradients: {"log_sum": "*fp32", "gradients": "*bf16"},
    }
    sizes = {}
    for kernel, arguments in outputs.items():
        types = {name: {**inputs, **arguments}[name] for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=types, constexprs={"BLOCK": cross_entropy_kernels.BLOCK})
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        sizes[kernel.__name__] = len(made.asm["cubin"])
    return sizes


def main() -> None:
    """Entry point."""
    if sys.argv[1:]:
        print(json.dumps(compiled(int(sys.argv[1]))))
        return
    torch.manual_seed(0)
    cross_entropy_kernels.BLOCK = 64
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    print(json.dumps({name: [differences(*case, dtype) for case in CASES] for name, dtype in dtypes.items()}))


if __name__ == "__main__":
    main()
