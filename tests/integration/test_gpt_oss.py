"""gpt-oss beyond what all families share: configs as published and as saved, refusals, checkpoints, packed weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import FileSystemReader

from benchmarks.models import random_pack
from conversion.convert import export_hf, import_hf
from conversion.verify import verify
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.megatron_model.build_model import ModelOptions, build_model, transformer_config
from dasd_megatron.megatron_model.process_groups import process_groups
from dasd_megatron.models.flops import training_flops
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.models.mxfp4 import unpack
from dasd_megatron.models.parameter_count import parameter_count
from dasd_megatron.models.parameter_mapping import InterleavedGateUpMapping, TransposedMapping
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.planning.memory_estimate import layer_activations
from dasd_megatron.utils.errors import UserError
from tests.helpers.logits import aligned_batch, logits_and_loss
from tests.helpers.tiny_models import tiny_model

# The published config of gpt-oss-20b.
PUBLISHED: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}


def model_of(folder: Path, config: dict[str, Any]) -> HFModel:
    """A folder with a config and no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return HFModel(folder)


@pytest.mark.parametrize(("layers", "experts", "parameters"), [(24, 32, 20_914_757_184), (36, 128, 116_829_156_672)])
def test_published_models(tmp_path: Path, layers: int, experts: int, parameters: int) -> None:
    """As published and as transformers saves it again; sizes are those of the model card."""
    from transformers import AutoConfig

    kinds = PUBLISHED["layer_types"][:2] * (layers // 2)
    config = {**PUBLISHED, "num_hidden_layers": layers, "num_local_experts": experts, "layer_types": kinds}
    published = model_of(tmp_path / "published", config)
    AutoConfig.from_pretrained(tmp_path / "published").save_pretrained(tmp_path / "saved")
    saved = HFModel(tmp_path / "saved")
    assert saved.config["rope_parameters"]["truncate"] is False
    assert published.shape == saved.shape
    assert parameter_count(published.shape) == parameters
    assert published.rope.attention_factor == saved.rope.attention_factor == pytest.approx(1.3466, abs=1e-4)
    assert torch.equal(published.rope.inverse_frequencies, saved.rope.inverse_frequencies)
    assert {**published.family.arguments(published.config)} == {**saved.family.arguments(saved.config)}


def test_what_megatron_is_told(tmp_path: Path) -> None:
    from megatron.core.fusions.fused_bias_geglu import quick_gelu

    config = transformer_config(model_of(tmp_path, PUBLISHED), ParallelConfig(), ModelOptions(torch.bfloat16))
    assert config.window_size == (127, 0)
    assert config.window_attn_skip_freq == [1, 0] * 12
    assert config.softmax_type == "learnable"
    assert config.softmax_scale == pytest.approx(1.3466**2 / 8, rel=1e-4)
    assert config.activation_func is quick_gelu
    assert (config.glu_linear_offset, config.activation_func_clamp_value) == (1.0, 7.0)
    assert config.add_bias_linear
    assert (config.num_moe_experts, config.moe_router_topk, config.moe_ffn_hidden_size) == (32, 4, 2880)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": False}, "attention_bias=False isn't supported"),
        ({"swiglu_alpha": 1.0}, "swiglu_alpha=1.0 isn't supported"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' isn't supported"),
        ({"layer_types": ["chunked_attention"] * 24}, "isn't supported for GptOssForCausalLM"),
        ({"layer_types": ["full_attention"] * 23}, "each of the 24 layers"),
        ({"layer_types": None}, "layer_types=None isn't supported"),
        ({"sliding_window": None}, "sliding_window missing"),
        ({"sliding_window": 0}, "sliding_window must be a positive whole number"),
        ({"swiglu_limit": -1.0}, "swiglu_limit must be a positive number"),
        ({"experts_per_token": 2}, "experts_per_token and num_experts_per_tok differ"),
        ({"rope_scaling": None}, "the kind or base of the rotary embedding is missing"),
        ({"head_dim": None}, "head_dim is missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, "weights quantised by 'gptq' aren't supported"),
        ({"attention_chunk_size": 8}, "the field 'attention_chunk_size' isn't known"),
    ],
)
def test_configs_that_are_not_understood(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        model_of(tmp_path, {**PUBLISHED, **changes})
    assert str(tmp_path / "config.json") in str(caught.value)
    assert message in str(caught.value)


def test_without_windows(tmp_path: Path) -> None:
    hf = model_of(tmp_path, {**PUBLISHED, "layer_types": ["full_attention"] * 24})
    assert hf.family.arguments(hf.config)["window_size"] is None
    assert (hf.shape.window, hf.shape.windowed_layers) == (0, 0)


def test_entries_of_one_expert() -> None:
    """Gate and up alternate in the last dimension; Hugging Face's matrices are [inputs, outputs]."""
    shape = ModelShape(1, 3, 1, 1, 2, 2, 5, experts=2, top_k=1)
    hf = torch.tensor([[1, 10, 2, 20]] * 3) + 100 * torch.arange(3)[:, None]  # columns: gate, up, gate, up
    entry = InterleavedGateUpMapping("m", "h")
    assert entry.to_megatron((hf,), shape).tolist() == [[1, 101, 201], [2, 102, 202], [10, 110, 210], [20, 120, 220]]
    assert torch.equal(entry.to_hf(entry.to_megatron((hf,), shape), shape)[0], hf)
    bias = InterleavedGateUpMapping("m", "h", rows=())
    assert bias.to_megatron((hf[0],), shape).tolist() == [1, 2, 10, 20]
    assert torch.equal(bias.to_hf(bias.to_megatron((hf[0],), shape), shape)[0], hf[0])
    down = TransposedMapping("m", "h", ("hidden", "ffn_hidden_size"))
    assert down.hf_dims == (("ffn_hidden_size", "hidden"),)
    assert torch.equal(down.to_megatron((hf,), shape), hf.t())
    assert torch.equal(down.to_hf(hf.t(), shape)[0], hf)


def test_the_table_is_megatrons_checkpoint(tmp_path: Path) -> None:
    """Names, stacks and sizes of all tensors; and those of the Hugging Face file."""
    hf = HFModel(tiny_model(tmp_path / "hf", "gpt_oss"))
    import_hf(hf.folder, tmp_path / "megatron")
    metadata = FileSystemReader(tmp_path / "megatron").read_metadata().state_dict_metadata
    found = {key: tuple(item.size) for key, item in metadata.items() if hasattr(item, "size")}
    parts = list(hf.family.parts(hf.shape))
    assert {part.key: (*part.stacked_shape, *part.megatron_shape) for part in parts} == found
    assert all(len(part.index) == len(part.stacked_shape) for part in parts)
    theirs = {name: tuple(tensor.shape) for name, tensor in load_file(hf.folder / "model.safetensors").items()}
    assert {name: size for part in parts for name, size in zip(part.hf, part.hf_shapes, strict=True)} == theirs
    assert {part.expert for part in parts if part.stacked} == set(range(hf.shape.experts))


def test_packed_weights(tmp_path: Path) -> None:
    """A folder with MXFP4 experts becomes what the same folder in bf16 does; what is exported says nothing of packing."""
    # Sizes of which groups of 32 can be made.
    plain = tiny_model(tmp_path / "plain", "gpt_oss", hidden_size=64, intermediate_size=32, dtype="bfloat16")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(plain / "model.safetensors").items()}
    packed = dict(tensors)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = packed.pop(name).shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 125, (experts, rows, columns // 32), dtype=torch.uint8, generator=generator)
        packed |= {name + "_blocks": blocks, name + "_scales": scales}
        tensors[name] = unpack(blocks, scales).mT.contiguous()
    save_file(tensors, plain / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    quantised = tmp_path / "packed"
    model_of_packed = {
        **config,
        "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
    }
    quantised.mkdir()
    (quantised / "config.json").write_text(json.dumps(model_of_packed))
    save_file(packed, quantised / "model.safetensors")
    import_hf(quantised, tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == config
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(again[name], tensor), name
    card = verify(quantised, tmp_path / "megatron", ParallelConfig())  # transformers unpacks them, too
    assert not card.problems


def test_flops_count_what_a_window_leaves() -> None:
    sizes = {
        "layers": 2,
        "hidden": 8,
        "heads": 2,
        "query_groups": 1,
        "head_dim": 4,
        "ffn_hidden_size": 8,
        "vocabulary": 10,
    }
    whole, windowed = ModelShape(**sizes), ModelShape(**sizes, window=100, windowed_layers=1)
    assert training_flops(windowed, [60, 100]) == training_flops(whole, [60, 100])
    hidden = 300**2 / 2  # of the causal half of 400 squared, the pairs that lie further apart than the window
    assert training_flops(whole, [400]) - training_flops(windowed, [400]) == 3 * 4 * 8 * hidden


@pytest.mark.parametrize("tensor", [1, 2])
def test_stages_hold_what_the_estimate_says(tmp_path: Path, tensor: int, capsys: pytest.CaptureFixture[str]) -> None:
    from dasd_megatron.training.build_ranks import build_ranks

    folder = model_of(tmp_path, PUBLISHED).folder
    build_ranks(folder, ParallelConfig(tensor=tensor, pipeline=4, data=2, expert=2), TrainingConfig(), MemoryConfig())
    assert "GptOssForCausalLM of 20,914,757,184 parameters" in capsys.readouterr().out


def test_estimated_activations_are_what_a_layer_saves(tmp_path: Path) -> None:
    """On this CPU; of a layer with a window and of one without."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 24}
    hf = HFModel(tiny_model(tmp_path, "gpt_oss", hidden_size=192, intermediate_size=192, **sizes))
    lengths = [256, 128, 64, 64]
    batch = aligned_batch(random_pack(lengths, hf.shape.vocabulary), 16)
    saved: dict[int, torch.UntypedStorage] = {}
    found = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with process_groups(ParallelConfig(), 0):
        [chunk] = build_model(hf, ParallelConfig(), ModelOptions(moe_aux_loss_coeff=0.0), 512)
        weights = {parameter.untyped_storage().data_ptr() for parameter in chunk.parameters()}
        for parameter in chunk.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        for layer in chunk.decoder.layers:
            layer.register_forward_pre_hook(lambda *_: saved.clear())
            layer.register_forward_hook(lambda *_: found.append(sum(s.nbytes() for s in saved.values()) / 4))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            logits_and_loss(chunk, batch, hf.shape.vocabulary)
    estimate = layer_activations(hf.shape, ParallelConfig(), "cpu")
    expected = (estimate.sequence + estimate.tensor) * sum(lengths)
    assert found == pytest.approx([expected, expected], rel=0.03)
