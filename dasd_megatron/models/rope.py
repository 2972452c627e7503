"""Rotary embedding of a Hugging Face config: its frequencies, plain or scaled for long contexts (YaRN, Llama 3, linear)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dasd_megatron.utils.errors import UserError

COMMON = {"rope_type", "type", "rope_theta"}
# Kinds whose frequencies don't depend on the length of the input, and the fields that each reads.
FIELDS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "original_max_position_embeddings",
        "truncate",
    },
}


@dataclass(frozen=True)
class Rope:
    """What the model needs of it.

    Attributes:
        inverse_frequencies: float32 [head_dim / 2].
        attention_factor: factor on the sine and cosine of queries and keys; attention scores are scaled by its square.
    """

    inverse_frequencies: torch.Tensor
    attention_factor: float


def rope_settings(config: Mapping[str, Any], place: str) -> tuple[str, float, dict[str, Any]]:
    """Kind, base, and the fields that belong to the kind. Raises UserError for a kind that isn't supported."""
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(name) or {}, Mapping):
            raise UserError(f"{place}: {name} must be a mapping, not {config[name]!r}")
    settings = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    kind = settings.get("rope_type") or settings.get("type") or "default"
    base = settings.get("rope_theta", config.get("rope_theta", 10_000.0))
    if not isinstance(base, int | float) or isinstance(base, bool) or base <= 0:
        raise UserError(f"{place}: rope_theta must be a positive number, not {base!r}")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise UserError(f"{place}: rope_type={kind!r} isn't supported; supported: {', '.join(FIELDS)}")
    unknown = set(settings) - COMMON - FIELDS[kind]
    if unknown:
        raise UserError(f"{place}: rope_type={kind!r} with {', '.join(sorted(unknown))} isn't supported")
    for name in FIELDS[kind] - {"truncate"}:
        value = settings.get(name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or value <= 0):
            raise UserError(f"{place}: {name} of rope_type={kind!r} must be a positive number, not {value!r}")
    return kind, base, {name: value for name, value in settings.items() if name in FIELDS[kind]}


def rope(config: Mapping[str, Any], head_dim: int, place: str) -> Rope:
    """The rotary embedding, computed by transformers. Raises UserError for a kind that isn't supported."""
    kind, base, settings = rope_settings(config, place)
    if kind == "default":
        return Rope(1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim), 1.0)
    from transformers import PreTrainedConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    length = config.get("max_position_embeddings")
    # Where YaRN says nothing of the original length, it is the model's own (transformers fills it in the same way).
    original = {"original_max_position_embeddings": length} if kind in ("yarn", "llama3") else {}
    parameters = {**original, **settings, "rope_type": kind, "rope_theta": base}
    try:
        hf = PreTrainedConfig(rope_parameters=parameters, head_dim=head_dim, max_position_embeddings=length)
        hf.hidden_size, hf.num_attention_heads = head_dim, 1
        with torch.device("cpu"):  # also where a dry run builds everything else without memory
            frequencies, factor = ROPE_INIT_FUNCTIONS[kind](hf, torch.device("cpu"))
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"{place}: rope_type={kind!r}: {error.args[0] if error.args else error!r}") from None
    if not torch.isfinite(frequencies).all():
        raise UserError(f"{place}: rope_type={kind!r} with {settings} gives frequencies that aren't finite")
    return Rope(frequencies.float(), float(factor))
