"""How many tokens' logits the loss makes at a time. No torch: memory is estimated by it, too."""

from __future__ import annotations

# Logits of one tile of tokens, which are float32. Each tile adds to all of the head's gradient: on a GPU, where small ones would
# cost more than their products, they may take 1.1 GiB; in a CPU's memory 128 MiB.
TILE_ELEMENTS = {"gpu": 288 << 20, "cpu": 32 << 20}


def tile_tokens(backend: str, columns: int) -> int:
    """Tokens of a tile, for this many columns of the vocabulary on a rank."""
    size = TILE_ELEMENTS[backend] // max(1, columns)
    return size // 128 * 128 if size > 128 else max(size, 1)  # whole tiles of a matrix product
