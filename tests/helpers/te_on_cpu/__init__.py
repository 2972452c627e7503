"""Transformer Engine's own Python, and Megatron's wrappers of it, on a CPU: for tests of the product's GPU branch.

The compiled extension alone is replaced: by plain torch that means the same (`extension/`). `device.py` makes the process take
its GPU branches, and fails where a tensor is on the wrong side. What can't be seen this way: kernels, their precision and speed,
what cuDNN and cuBLAS refuse, streams, NCCL, memory.
"""
