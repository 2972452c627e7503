"""How the choice of an attention reaches Megatron and Transformer Engine, by variables that both are particular about."""

from __future__ import annotations

import os

import pytest

from dasd_megatron.config.gpu_specs import UNFUSED_TOKENS
from dasd_megatron.megatron_model.attention_backend import (
    VARIABLES,
    fused_attention_or_error,
    without_unfused_attention,
)
from dasd_megatron.utils.errors import UserError


def test_models_are_built_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron, in place of whose choice stands the 1 here, fails at a variable that has another value already."""
    for max_length, left in ((UNFUSED_TOKENS + 1, "0"), (UNFUSED_TOKENS, "1"), (UNFUSED_TOKENS + 1, "0")):
        with without_unfused_attention(max_length):
            assert not [name for name in VARIABLES if name in os.environ]
            monkeypatch.setenv("NVTE_UNFUSED_ATTN", "1")
        assert os.environ["NVTE_UNFUSED_ATTN"] == left


def test_no_attention_for_a_model() -> None:
    with pytest.raises(UserError, match=r"no fused attention .*; set another"), fused_attention_or_error("set another"):
        raise ValueError("No dot product attention backend is available for the provided inputs.")
    with pytest.raises(ValueError, match="odd"), fused_attention_or_error("set another"):
        raise ValueError("odd")
