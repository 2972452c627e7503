"""Tokenizers, chat templates and byte offsets. Needs no torch."""
