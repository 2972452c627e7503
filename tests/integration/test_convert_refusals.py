"""What import and export refuse, in one line and with nothing written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conversion.convert import import_hf
from dasd_megatron.cli import convert
from dasd_megatron.models.checkpoint_index import read_index
from tests.conftest import ROOT
from tests.helpers.conversions import LAYER_NORM, NORM, QUERY, change_config, change_tensors, run
from tests.helpers.damage import overwrite_an_item
from tests.helpers.tiny_models import tiny_model


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit code, standard output, standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = convert.main("dasd convert", [str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return command


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_of(folder: Path, **files: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = load_file(folder / "model-00001-of-00002.safetensors")
    weight_map = {**dict.fromkeys(names, "model-00001-of-00002.safetensors"), **files}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


BAD_MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "architecture": (lambda f: change_config(f, architectures=["FooForCausalLM"]), "FooForCausalLM isn't supported"),
    "field": (lambda f: change_config(f, logit_scale=2.0), "the field 'logit_scale' isn't known"),
    "value": (lambda f: change_config(f, hidden_act="gelu"), "hidden_act='gelu' isn't supported"),
    "quantised": (
        lambda f: change_config(f, quantization_config={"quant_method": "fp8"}),
        "quantization_config={'quant_method': 'fp8'} isn't supported",
    ),
    "rope": (
        lambda f: change_config(f, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        "rope_type='dynamic' isn't supported",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "architectures": (lambda f: change_config(f, architectures={"a": 1}), "architecture {'a': 1} isn't supported"),
    "epsilon": (lambda f: change_config(f, rms_norm_eps="5"), "rms_norm_eps must be a positive number, not '5'"),
    "no epsilon": (lambda f: change_config(f, rms_norm_eps=None), "rms_norm_eps must be a positive number, not None"),
    "switch": (lambda f: change_config(f, tie_word_embeddings="no"), "tie_word_embeddings must be true or false"),
    "empty list": (lambda f: change_config(f, layer_types=[]), "layer_types=[] isn't supported"),
    "heads": (lambda f: change_config(f, num_key_value_heads=3), "num_key_value_heads=3 doesn't divide the 4 heads"),
    "rope mapping": (lambda f: change_config(f, rope_parameters="x"), "rope_parameters must be a mapping, not 'x'"),
    "rope base": (
        lambda f: change_config(f, rope_parameters={"rope_theta": "x"}),
        "rope_theta must be a positive number, not 'x'",
    ),
    "rope factor": (
        lambda f: change_config(f, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 0}),
        "factor of rope_type='linear' must be a positive number, not 0",
    ),
    "types of layers": (
        lambda f: change_tensors(f, lambda t: t.update({LAYER_NORM: t[LAYER_NORM].bfloat16()})),
        "say with --dtype which type all weights are to have",
    ),
    "types of a part": (
        lambda f: change_tensors(f, lambda t: t.update({QUERY: t[QUERY].bfloat16()})),
        "say with --dtype which type all weights are to have",
    ),
    "missing": (lambda f: change_tensors(f, lambda t: t.pop(NORM)), f"without {NORM}, which config.json implies"),
    "surplus": (
        lambda f: change_tensors(f, lambda t: t.update({"model.extra.weight": torch.ones(2)})),
        "model.extra.weight is unknown to Qwen3ForCausalLM; a conversion would lose it",
    ),
    "misshapen": (
        lambda f: change_tensors(f, lambda t: t.update({NORM: torch.ones(47)})),
        f"{NORM} is [47], but config.json implies [48]",
    ),
    "type": (
        lambda f: change_tensors(f, lambda t: t.update({NORM: torch.ones(48, dtype=torch.int8)})),
        f"{NORM} is of type I8; only F32, BF16, F16 are read",
    ),
    "truncated": (lambda f: cut(f / "model.safetensors"), "damaged or truncated"),
    "pickle": (as_pickle, "other formats (pickle) aren't read, for they can run code"),
    "absent file": (
        lambda f: index_of(f, **{NORM: "model-00002-of-00002.safetensors"}),
        "names model-00002-of-00002.safetensors, which isn't there",
    ),
    "outside": (lambda f: index_of(f, **{NORM: "../other.safetensors"}), "weights must lie in the model's folder"),
    "index": (lambda f: index_of(f, more="model-00001-of-00002.safetensors"), "more should be in it"),
}


@pytest.mark.parametrize("case", BAD_MODELS)
def test_models_that_are_refused(case: str, tmp_path: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    damage, message = BAD_MODELS[case]
    hf = tiny_model(tmp_path / "hf")
    damage(hf)
    code, output, errors = here("import", "--hf", hf, "--megatron", tmp_path / "out")
    assert (code, output) == (2, "")
    assert message in errors
    assert len(errors.strip().splitlines()) == 1  # no traceback
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


class Evil:
    """A pickle that does something when it is read."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pickle-was-run",)


def poison(folder: Path) -> None:
    import pickle

    (folder / ".metadata").write_bytes(pickle.dumps(Evil()))
    (folder / ".metadata.sha256").unlink()


def drop_file(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()


def old_format(folder: Path) -> None:
    (folder / ".metadata").unlink()
    (folder / "mp_rank_00").mkdir()


def forget_a_place(folder: Path) -> None:
    import pickle

    index = read_index(folder)
    index.storage_data.popitem()
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    (folder / ".metadata.sha256").unlink()


def into_steps(folder: Path) -> None:
    temporary = folder.rename(folder.with_name("step-0000005"))
    folder.mkdir()
    temporary.rename(folder / temporary.name)


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "poisoned": (poison, "asks for posix.system, which no index needs and which could run code"),
    "no index": (lambda f: (f / ".metadata").unlink(), "no Megatron distributed checkpoint (no .metadata in it)"),
    "damaged index": (lambda f: cut(f / ".metadata"), ".metadata: damaged"),
    "truncated": (lambda f: cut(f / "__0_0.distcp"), "__0_0.distcp: truncated at"),
    "other bytes": (overwrite_an_item, "__0_0.distcp: damaged: Bad CRC-32 for file"),
    "lost file": (drop_file, "__0_0.distcp: missing"),
    "old format": (old_format, "a checkpoint in Megatron's old format, a pickle, which can run code"),
    "no config": (lambda f: (f / "hf" / "config.json").unlink(), "say with --like which Hugging Face folder"),
    "other sizes": (
        lambda f: change_config(f / "hf", hidden_size=64),
        "embedding.word_embeddings.weight is [131, 48], but config.json implies [131, 64]",
    ),
    "fewer layers": (
        lambda f: change_config(f / "hf", num_hidden_layers=3),
        "linear_qkv.layer_norm_weight is [4, 48], but config.json implies [3, 48]",
    ),
    "tied": (lambda f: change_config(f / "hf", tie_word_embeddings=True), "holds output_layer.weight"),
    "larger vocabulary": (
        lambda f: change_config(f / "hf", vocab_size=200),
        "embedding.word_embeddings.weight is [131, 48], but config.json implies [200, 48]",
    ),
    "incomplete index": (forget_a_place, ".metadata: damaged"),
    "folder of checkpoints": (into_steps, "a folder of checkpoints; name one of them, such as step-0000005"),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_checkpoints_that_are_refused(case: str, tmp_path: Path, here: Callable[..., tuple[int, str, str]]) -> None:
    damage, message = BAD_CHECKPOINTS[case]
    import_hf(tiny_model(tmp_path / "hf"), tmp_path / "megatron")
    damage(tmp_path / "megatron")
    code, output, errors = here("export", "--megatron", tmp_path / "megatron", "--hf", tmp_path / "out")
    assert (code, output) == (2, "")
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "megatron"]
    assert not (ROOT / "pickle-was-run").exists()


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    hf = tiny_model(tmp_path / "hf")
    import_hf(hf, tmp_path / "megatron")
    (tmp_path / "out").mkdir()
    for arguments in (["import", "--hf", hf, "--megatron"], ["export", "--megatron", tmp_path / "megatron", "--hf"]):
        done = run(*arguments, tmp_path / "out")
        assert done.returncode == 2
        assert "exists already; name a new folder, or remove this one first" in done.stderr
        assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_leaves_no_parents(tmp_path: Path) -> None:
    done = run("import", "--hf", tmp_path / "absent", "--megatron", tmp_path / "a" / "b" / "out")
    assert (done.returncode, "no such model folder" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []
