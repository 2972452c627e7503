"""The sizes of a model, from its Hugging Face config; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasd_megatron.errors import UserError
from dasd_megatron.recipe.preflight import size


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        feed_forward: inner size of the MLP, or of each expert.
        experts, chosen_experts: of each layer, and of each token; 0 and 0 in a dense model.
        tied: whether the head is the embedding.
        qk_norm, qkv_bias: whether attention has norms of queries and keys, or biases.
        biases: whether every projection of a layer has a bias.
        sinks: whether each head has a logit that takes part in its softmax.
        window, windowed_layers: tokens that a token sees, itself among them, in so many of the layers; 0 and 0 without.
    """

    layers: int
    hidden: int
    heads: int
    query_groups: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    experts: int = 0
    chosen_experts: int = 0
    tied: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    biases: bool = False
    sinks: bool = False
    window: int = 0
    windowed_layers: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any], folder: Path) -> Shape:
        """From config.json. Raises UserError where a size is missing or no number."""

        def number(name: str) -> int:
            return size(config, folder, name)

        # transformers 5 writes the number of experts under another name than before.
        experts = next((number(name) for name in ("num_experts", "num_local_experts") if name in config), 0)
        architecture = (config.get("architectures") or [""])[0]
        chosen = number("num_experts_per_tok") if experts else 0
        if chosen > experts:
            raise UserError(f"{folder / 'config.json'}: num_experts_per_tok={chosen} of {experts} experts")
        gpt_oss = architecture.startswith("GptOss")
        layer_types = config.get("layer_types")
        windowed = layer_types.count("sliding_attention") if isinstance(layer_types, list) else 0
        tied = config.get("tie_word_embeddings", False)
        if not isinstance(tied, bool):
            raise UserError(f"{folder / 'config.json'}: tie_word_embeddings must be true or false, not {tied!r}")
        heads, groups = number("num_attention_heads"), number("num_key_value_heads")
        if heads % groups:
            raise UserError(f"{folder / 'config.json'}: num_key_value_heads={groups} doesn't divide the {heads} heads")
        return cls(
            layers=number("num_hidden_layers"),
            hidden=number("hidden_size"),
            heads=heads,
            query_groups=groups,
            head_dim=number("head_dim")
            if config.get("head_dim")
            else number("hidden_size") // number("num_attention_heads"),
            feed_forward=number("moe_intermediate_size" if experts and not gpt_oss else "intermediate_size"),
            vocabulary=number("vocab_size"),
            experts=experts,
            chosen_experts=chosen,
            tied=tied,
            qk_norm=architecture.startswith("Qwen3"),
            qkv_bias=gpt_oss or architecture.startswith("Qwen2"),
            biases=gpt_oss,
            sinks=gpt_oss,
            window=number("sliding_window") if windowed else 0,
            windowed_layers=windowed,
        )

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
        return 2 * self.feed_forward

    @property
    def qkv_columns(self) -> int:
        """Width of queries, keys and values together."""
        return self.query_columns + 2 * self.key_columns
