"""The verify command: passes for what is the same in every layout, and names what isn't."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.convert import import_hf
from conversion.probes import reference_outputs
from conversion.verify import _megatron_outputs, _output_problems, card_path, verify
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.utils.errors import UserError
from tests.conftest import ROOT, TOY
from tests.helpers.marks import mostly_full
from tests.helpers.tiny_models import FAMILIES, tiny_model

LAYOUTS = {
    "qwen3-one": ("qwen3", ParallelConfig()),
    "qwen3-tp2": ("qwen3", ParallelConfig(tensor=2)),
    "qwen3-pp2": ("qwen3", ParallelConfig(pipeline=2)),
    "qwen3-tp2xpp2": ("qwen3", ParallelConfig(tensor=2, pipeline=2)),
    "qwen3_moe-tp2xpp2": ("qwen3_moe", ParallelConfig(tensor=2, pipeline=2)),
    "qwen3_moe-ep2": ("qwen3_moe", ParallelConfig(expert=2, data=2)),
    "qwen2-tp2": ("qwen2", ParallelConfig(tensor=2)),
    "llama-tp2xpp2": ("llama", ParallelConfig(tensor=2, pipeline=2)),
    "gpt_oss-one": ("gpt_oss", ParallelConfig()),
    "gpt_oss-tp2xpp2": ("gpt_oss", ParallelConfig(tensor=2, pipeline=2)),
    "gpt_oss-ep2": ("gpt_oss", ParallelConfig(expert=2, data=2)),
}


@pytest.mark.parity
@pytest.mark.parametrize("name", mostly_full(LAYOUTS, ("qwen3-one", "gpt_oss-one", "qwen3_moe-ep2", "llama-tp2xpp2")))
def test_same_logits_in_every_layout(name: str, tmp_path: Path) -> None:
    """In fp32, at positions beyond 8K, within 1e-5: absolutely, and of the largest logit."""
    family, parallel = LAYOUTS[name]
    hf = tiny_model(tmp_path / "hf", family, tied=family == "qwen3")
    import_hf(hf, tmp_path / "megatron")
    card = verify(hf, tmp_path / "megatron", parallel)
    assert not card.problems
    for probe in card.content["probes"]:
        logits = probe["outputs"]["logits"]
        print(f"{family}, {parallel}, {probe['name']}: {logits['difference']:.1e} of {logits['scale']:.1f}")
        assert logits["difference"] < 1e-5 * max(1.0, logits["scale"])
        assert {f"layer {n}" for n in range(4)} < probe["outputs"].keys()
    assert max(max(probe["positions"]) for probe in card.content["probes"]) > 8192


def test_the_command_and_its_card(tmp_path: Path) -> None:
    import_hf(TOY / "student", tmp_path / "megatron")
    command = [sys.executable, "tools/convert.py", "verify", "--hf", str(TOY / "student")]
    command += ["--megatron", str(tmp_path / "megatron")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "35 of 35 equal bit by bit" in done.stdout
    assert "the same for 4 of 4 prompts" in done.stdout
    card = json.loads(card_path(tmp_path / "megatron").read_text())
    assert card["passed"]
    assert card["command"][1:] == command[2:]
    assert card["versions"]["megatron-core"] == "0.19.2"
    assert len(card["weights_sha256"]) == 64
    assert all(isinstance(probe["text"], str) for probe in card["probes"][:-1])


def test_the_hash_is_of_the_weights_not_of_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conversion.compare import compare_tensors
    from conversion.megatron_checkpoint import MegatronCheckpoint

    hf = HFModel(tiny_model(tmp_path / "hf"))
    import_hf(hf.folder, tmp_path / "one")
    monkeypatch.setattr("conversion.checkpoint_writer.FILE_BYTES", 10_000)
    import_hf(hf.folder, tmp_path / "two")
    hashes = [compare_tensors(hf, MegatronCheckpoint(tmp_path / name)).sha256 for name in ("one", "two")]
    assert hashes[0] == hashes[1]
    change(hf.folder, "model.norm.weight", lambda norm: norm * 2)
    import_hf(hf.folder, tmp_path / "three")
    assert compare_tensors(HFModel(hf.folder), MegatronCheckpoint(tmp_path / "three")).sha256 != hashes[0]


def test_tensors_are_compared_by_their_bits(tmp_path: Path) -> None:
    from conversion.compare import compare_tensors
    from conversion.megatron_checkpoint import MegatronCheckpoint

    folder = tiny_model(tmp_path / "hf")
    change(folder, "model.norm.weight", lambda norm: torch.cat([torch.tensor([float("nan"), 0.0]), norm[2:]]))
    import_hf(folder, tmp_path / "megatron")
    assert not compare_tensors(HFModel(folder), MegatronCheckpoint(tmp_path / "megatron")).differences
    change(folder, "model.norm.weight", lambda norm: torch.cat([norm[:1], torch.tensor([-0.0]), norm[2:]]))
    [difference] = compare_tensors(HFModel(folder), MegatronCheckpoint(tmp_path / "megatron")).differences
    assert (difference.name, difference.elements) == ("model.norm.weight", 1)


def change(folder: Path, name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = function(tensors[name]).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def config(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **changes}))


def one_weight(tensor: torch.Tensor) -> torch.Tensor:
    tensor[3, 7] *= 1.01
    return tensor


def swap_heads(tensor: torch.Tensor) -> torch.Tensor:
    """The first two heads of 32 columns, exchanged."""
    first, second, *others = tensor.split(32)
    return torch.cat([second, first, *others])


UP = "model.layers.2.mlp.up_proj.weight"
Q, K, V = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qkv")
ROPE = {"rope_theta": 5000.0, "rope_type": "linear", "factor": 2.0}
DIFFERENT: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "one weight by 1%": (lambda f: change(f, UP, one_weight), [f"{UP}: 1 of 3,840 elements differ", "at [3, 7]"]),
    "query heads": (lambda f: change(f, Q, swap_heads), [f"{Q}: 3,072 of 6,144", "the first to differ is layer 1"]),
    "key heads": (lambda f: change(f, K, swap_heads), [f"{K}: 3,072 of 3,072", "the first to differ is layer 1"]),
    "value heads": (lambda f: change(f, V, swap_heads), [f"{V}: 3,072 of 3,072", "the first to differ is layer 1"]),
    "norm epsilon": (
        lambda f: config(f, rms_norm_eps=1e-5),
        ["rms_norm_eps is 1e-05, but 1e-06 in the checkpoint", "the first to differ is layer 0"],
    ),
    "rope base": (
        lambda f: config(f, rope_parameters={"rope_type": "default", "rope_theta": 5050.0}),
        ["rope is 'default' with base 5050, but 'default' with base 5000", "the first to differ is layer 0"],
    ),
    "rope scaling": (
        lambda f: config(f, rope_parameters=ROPE),
        ["rope is 'linear' with base 5000, factor 2.0, but", "the first to differ is layer 0"],
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
def test_differences_are_found_and_named(case: str, tmp_path: Path) -> None:
    damage, messages = DIFFERENT[case]
    hf = tiny_model(tmp_path / "hf")
    import_hf(hf, tmp_path / "megatron")
    damage(hf)
    card = verify(hf, tmp_path / "megatron", ParallelConfig())
    assert card.problems
    assert not card.content["passed"]
    for message in messages:
        assert any(message in problem for problem in card.problems), card.problems


def test_the_command_fails_for_another_model(tmp_path: Path) -> None:
    hf = tiny_model(tmp_path / "hf")
    import_hf(hf, tmp_path / "megatron")
    change(hf, UP, one_weight)
    command = [sys.executable, "tools/convert.py", "verify", "--hf", str(hf), "--megatron", str(tmp_path / "megatron")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert f"differs: {UP}" in done.stdout
    assert "NOT the same model" in done.stdout
    assert not json.loads(card_path(tmp_path / "megatron").read_text())["passed"]


def test_other_files_are_compared(tmp_path: Path) -> None:
    hf = shutil.copytree(TOY / "student", tmp_path / "hf")
    import_hf(hf, tmp_path / "megatron")
    (hf / "chat_template.jinja").write_text("{{ messages }}")
    assert verify(hf, tmp_path / "megatron", ParallelConfig()).problems == ["chat_template.jinja isn't the same"]
    (hf / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer can't be loaded"):
        verify(hf, tmp_path / "megatron", ParallelConfig())


def test_what_is_not_finite_is_not_verified(tmp_path: Path) -> None:
    hf = tiny_model(tmp_path / "hf")
    change(hf, "model.norm.weight", lambda norm: norm * float("nan"))
    import_hf(hf, tmp_path / "megatron")
    card = verify(hf, tmp_path / "megatron", ParallelConfig())
    assert "prompt 0: logits aren't finite, so nothing can be said of them" in card.problems
    json.loads(card_path(tmp_path / "megatron").read_text(), parse_constant=pytest.fail)


def test_a_window_is_seen(tmp_path: Path) -> None:
    """Longer than the prompts: what a window leaves out shows in a probe that is longer."""
    hf = tiny_model(tmp_path / "hf", "gpt_oss", sliding_window=128)
    import_hf(hf, tmp_path / "megatron")
    config(tmp_path / "megatron" / "hf", sliding_window=100)
    with pytest.raises(UserError, match="window 100 against 128"):
        verify(hf, tmp_path / "megatron", ParallelConfig())
    config(tmp_path / "megatron" / "hf", sliding_window=128)
    reference = reference_outputs(HFModel(hf))
    [probe] = [probe for probe in reference.probes if probe.name == "beyond the window"]
    config(tmp_path / "megatron" / "hf", sliding_window=100)
    outputs = _megatron_outputs(
        HFModel(tmp_path / "megatron" / "hf"), tmp_path / "megatron", ParallelConfig(), reference
    )
    assert [p.name for p in reference.probes if _output_problems(p, outputs[p.name])] == [probe.name]


def test_the_same_config_in_other_words(tmp_path: Path) -> None:
    from conversion.compare import compare_models

    hf = tiny_model(tmp_path / "hf", "qwen3_moe")
    import_hf(hf, tmp_path / "megatron")
    content = json.loads((hf / "config.json").read_text())
    experts = content.pop("num_local_experts", None) or content.pop("num_experts")
    content |= {"num_experts": experts, "rope_theta": content.pop("rope_parameters")["rope_theta"]}
    (hf / "config.json").write_text(json.dumps(content))
    assert compare_models(HFModel(hf), HFModel(tmp_path / "megatron" / "hf")) == []


def test_tables_are_read_without_megatron(tmp_path: Path) -> None:
    """Whose modules need this machine prepared for them."""
    code = (
        "import sys; from pathlib import Path; import conversion.verify as v\n"
        "for hf in map(v.HFModel, map(Path, sys.argv[1:])): assert v.compare_models(hf, hf) == [], hf.folder\n"
        "assert not [m for m in sys.modules if m.startswith('megatron')]"
    )
    folders = [str(tiny_model(tmp_path / family, family)) for family in FAMILIES]
    done = subprocess.run([sys.executable, "-c", code, *folders], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rounding_is_said(tmp_path: Path) -> None:
    """A checkpoint rounded to bf16 is compared with the model rounded in the same way."""
    hf = tiny_model(tmp_path / "hf")
    import_hf(hf, tmp_path / "megatron", torch.bfloat16)
    card = verify(hf, tmp_path / "megatron", ParallelConfig())
    assert "equal bit by bit, after rounding to bfloat16" in card.content["summary"]["tensors"]
    assert not card.problems


def test_models_that_cannot_be_compared(tmp_path: Path) -> None:
    import_hf(tiny_model(tmp_path / "hf"), tmp_path / "megatron")
    other = tiny_model(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(UserError, match="layers 4 against 3"):
        verify(other, tmp_path / "megatron", ParallelConfig())
    with pytest.raises(UserError, match="tensor=3 doesn't divide the 4 attention heads"):
        verify(tmp_path / "hf", tmp_path / "megatron", ParallelConfig(tensor=3))
