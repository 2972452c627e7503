"""Import and export: exact for every family, size, type and layout."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from conversion.convert import export_hf, import_hf
from conversion.megatron_checkpoint import MegatronCheckpoint
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.models.checkpoint_index import read_index
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.utils.errors import UserError
from tests.helpers.conversions import NORM, assert_same, change_config, change_tensors, weights
from tests.helpers.layout_ranks import run_on_ranks
from tests.helpers.marks import mostly_full
from tests.helpers.tiny_models import FAMILIES, tiny_model


@st.composite
def models(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of tiny_model: any family, with sizes that fit together badly."""
    family = draw(st.sampled_from(FAMILIES))
    groups, queries, head_dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), 2 * draw(st.integers(1, 9))
    heads = groups * queries
    given_head_dim = family in ("qwen3", "qwen3_moe", "llama", "gpt_oss")
    fields: dict[str, Any] = {
        "vocab_size": draw(st.integers(5, 70)),
        # Where config.json doesn't say head_dim, it is hidden / heads.
        "hidden_size": heads * (draw(st.integers(2, 12)) if given_head_dim else head_dim),
        "intermediate_size": draw(st.integers(1, 30)),
        "num_hidden_layers": draw(st.integers(1, 5)),
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
    }
    if given_head_dim:
        fields["head_dim"] = head_dim
    if family == "qwen3_moe":
        fields |= {"num_experts": draw(st.integers(2, 5)), "moe_intermediate_size": draw(st.integers(2, 20))}
    if family == "gpt_oss":
        fields |= {"num_local_experts": draw(st.integers(2, 5)), "sliding_window": draw(st.integers(1, 9))}
        fields["layer_types"] = draw(
            st.lists(
                st.sampled_from(["full_attention", "sliding_attention"]),
                min_size=fields["num_hidden_layers"],
                max_size=fields["num_hidden_layers"],
            )
        )
    tied = draw(st.booleans()) if family not in ("qwen3_moe", "gpt_oss") else False
    return {"family": family, "tied": tied, **fields}


@given(model=models(), bf16=st.booleans())
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip_of_any_model(model: dict[str, Any], bf16: bool) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        hf = tiny_model(folder / "hf", **model)
        if bf16:
            save_file({n: t.bfloat16() for n, t in weights(hf).items()}, hf / "model.safetensors", {"format": "pt"})
            config = json.loads((hf / "config.json").read_text())
            (hf / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
        import_hf(hf, folder / "megatron")
        export_hf(folder / "megatron", folder / "again")
        assert_same(weights(hf), weights(folder / "again"))
        assert json.loads((folder / "again" / "config.json").read_text()) == HFModel(hf).config


@pytest.mark.parametrize("family", FAMILIES)
def test_an_import_is_what_megatron_would_have_written(family: str, tmp_path: Path) -> None:
    """Key by key: sizes, types, bytes, and the extra states that Megatron's layers look for."""
    hf = tiny_model(tmp_path / "hf", family)
    import_hf(hf, tmp_path / "ours")
    arguments = {"model": str(hf), "checkpoint": str(tmp_path / "ours"), "target": str(tmp_path / "theirs")}
    run_on_ranks("resave", ParallelConfig(), tmp_path / "result", **arguments)
    ours, theirs = (MegatronCheckpoint(tmp_path / name) for name in ("ours", "theirs"))
    indexes = [read_index(checkpoint.folder).state_dict_metadata for checkpoint in (ours, theirs)]
    assert indexes[0].keys() == indexes[1].keys()
    for name, stored in ours.weights.items():
        assert (stored.size, stored.properties.dtype) == (
            theirs.weights[name].size,
            theirs.weights[name].properties.dtype,
        ), name
    for part in HFModel(hf).parts:
        assert torch.equal(ours.parameter(part), theirs.parameter(part)), part.name


LAYOUTS = {
    "qwen3-pp3": ("qwen3", 3, ParallelConfig(pipeline=3)),
    "qwen3-tp2xpp2": ("qwen3", 4, ParallelConfig(tensor=2, pipeline=2)),
    "qwen2-pp2-interleaved": ("qwen2", 4, ParallelConfig(pipeline=2, virtual_pipeline=2)),
    "llama-tp2": ("llama", 3, ParallelConfig(tensor=2)),
    "qwen3_moe-ep2": ("qwen3_moe", 3, ParallelConfig(expert=2, data=2)),
    "qwen3_moe-tp2xep2": ("qwen3_moe", 2, ParallelConfig(tensor=2, expert=2)),
    "qwen3-cp2": ("qwen3", 3, ParallelConfig(context=2)),
    "gpt_oss-tp2xpp2": ("gpt_oss", 4, ParallelConfig(tensor=2, pipeline=2)),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", mostly_full(LAYOUTS, ("llama-tp2", "qwen3_moe-ep2")))
def test_any_layout_loads_an_import_and_is_exported(name: str, tmp_path: Path) -> None:
    """The vocabulary of 131 is padded where it is split over ranks; no layout's padding comes out."""
    family, layers, parallel = LAYOUTS[name]
    hf = tiny_model(tmp_path / "hf", family, tied=family == "qwen3", num_hidden_layers=layers)
    import_hf(hf, tmp_path / "megatron")
    arguments = {"model": str(hf), "checkpoint": str(tmp_path / "megatron"), "target": str(tmp_path / "saved")}
    run_on_ranks("resave", parallel, tmp_path / "result", **arguments)
    export_hf(tmp_path / "saved", tmp_path / "again")
    assert_same(weights(hf), weights(tmp_path / "again"))


def test_dtype_rounds_and_says_so(tmp_path: Path) -> None:
    hf = tiny_model(tmp_path / "hf")
    import_hf(hf, tmp_path / "megatron", torch.bfloat16)
    export_hf(tmp_path / "megatron", tmp_path / "again")
    assert_same({name: tensor.bfloat16() for name, tensor in weights(hf).items()}, weights(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_type_that_is_too_small(tmp_path: Path) -> None:
    hf = tiny_model(tmp_path / "hf")
    change_tensors(hf, lambda t: t[NORM].mul_(1e6))
    import_hf(hf, tmp_path / "bf16", torch.bfloat16)
    with pytest.raises(UserError, match=r"model.norm.weight: values up to 1.5e\+06 don't fit float16"):
        import_hf(hf, tmp_path / "fp16", torch.float16)


def test_like_is_of_the_same_model(tmp_path: Path) -> None:
    hf = tiny_model(tmp_path / "hf")
    import_hf(hf, tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "again", like=hf)
    for changes, message in (
        ({"vocab_size": 100}, "vocabulary is 100, but 131 in the checkpoint"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05, but 1e-06"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, "rope is 'default' with base 10000"),
    ):
        other = tiny_model(tmp_path / "other", **changes)
        with pytest.raises(UserError, match=message):
            export_hf(tmp_path / "megatron", tmp_path / "out", like=other)


def test_config_with_both_names_of_its_dtype(tmp_path: Path) -> None:
    hf = tiny_model(tmp_path / "hf")
    change_config(hf, dtype="float32", torch_dtype="float32")
    import_hf(hf, tmp_path / "megatron", torch.bfloat16)
    export_hf(tmp_path / "megatron", tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")


def test_shards_and_their_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    hf = tiny_model(tmp_path / "hf")
    AutoModelForCausalLM.from_pretrained(hf).save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    import_hf(tmp_path / "sharded", tmp_path / "megatron")
    monkeypatch.setattr("conversion.safetensors_writer.SHARD_BYTES", 100_000)
    export_hf(tmp_path / "megatron", tmp_path / "again")
    assert len(list((tmp_path / "again").glob("model-*-of-*.safetensors"))) > 3
    assert_same(weights(hf), weights(tmp_path / "again"))
    AutoModelForCausalLM.from_pretrained(tmp_path / "again")  # reads the index


def test_files_of_a_checkpoint_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conversion.checkpoint_writer.FILE_BYTES", 100_000)
    hf = tiny_model(tmp_path / "hf")
    import_hf(hf, tmp_path / "megatron")
    assert len(list((tmp_path / "megatron").glob("*.distcp"))) > 3
    export_hf(tmp_path / "megatron", tmp_path / "again")
    assert_same(weights(hf), weights(tmp_path / "again"))


def test_a_tied_head_that_is_written_nevertheless(tmp_path: Path) -> None:
    hf = tiny_model(tmp_path / "hf", tied=True)
    tensors = weights(hf)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, hf / "model.safetensors")
    import_hf(hf, tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "again")
    assert_same(tensors, weights(tmp_path / "again"))
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, hf / "model.safetensors")
    with pytest.raises(UserError, match=r"lm_head.weight is unknown"):
        import_hf(hf, tmp_path / "other")
