"""Megatron-Core training."""

import dasd_megatron.cpu_backend  # noqa: F401 (prepares Megatron for this machine when it is first imported)
