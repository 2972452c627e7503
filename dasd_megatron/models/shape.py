"""The sizes of a model. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        ffn_hidden_size: inner size of the MLP, or of each expert.
        experts, top_k: of each layer, and of each token; 0 and 0 in a dense model.
        tied: whether the head is the embedding.
        qk_norm, qkv_bias: whether attention has norms of queries and keys, or biases.
        biases: whether every projection of a layer has a bias.
        sinks: whether each head has a logit that takes part in its softmax.
        window, windowed_layers: tokens that a token sees, itself among them, in this number of the layers; 0 and 0 without.
    """

    layers: int
    hidden: int
    heads: int
    query_groups: int
    head_dim: int
    ffn_hidden_size: int
    vocabulary: int
    experts: int = 0
    top_k: int = 0
    tied: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    biases: bool = False
    sinks: bool = False
    window: int = 0
    windowed_layers: int = 0

    @property
    def query_columns(self) -> int:
        """Width of all queries, and of what attention puts out."""
        return self.heads * self.head_dim

    @property
    def key_columns(self) -> int:
        """Width of all keys, and of all values."""
        return self.query_groups * self.head_dim

    @property
    def gate_up_columns(self) -> int:
        """Width of gate and up projection together."""
        return 2 * self.ffn_hidden_size

    @property
    def qkv_columns(self) -> int:
        """Width of queries, keys and values together."""
        return self.query_columns + 2 * self.key_columns
