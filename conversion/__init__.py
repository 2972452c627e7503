"""Hugging Face and Megatron checkpoints."""
