"""Seeds of samples and choices: each follows from what identifies it, and from nothing that happens beside it."""

from __future__ import annotations

import hashlib


def sample_seed(*parts: object) -> int:
    """A seed from what identifies a sample (recipe seed, uuid, index): the same in every run and every shard size."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def sample_chance(*parts: object) -> float:
    """A number from 0 to 1, uniform, in the same way."""
    return sample_seed(*parts) / (1 << 63)
