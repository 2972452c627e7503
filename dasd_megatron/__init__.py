"""Distribution-aligned sequence distillation on Megatron-Core."""

__version__ = "0.1.0"
