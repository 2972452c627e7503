"""Model folders that are not understood, or damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.utils.errors import UserError
from tests.conftest import TOY


def copy_model(folder: Path, **changes: object) -> Path:
    shutil.copytree(TOY / "student", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "the architecture MambaForCausalLM isn't supported"),
        ({"attention_bias": True}, "attention_bias=True isn't supported"),
        ({"logit_softcap": 30}, "the field 'logit_softcap' isn't known"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4}}, "rope_type='dynamic' isn't supported"),
        ({"rope_parameters": {"rope_type": "yarn", "short_factor": [1]}}, "rope_type='yarn' with short_factor"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "Missing required keys in `rope_parameters`"),
        ({"partial_rotary_factor": 0.5}, "the field 'partial_rotary_factor' isn't known"),
    ],
)
def test_models_that_are_not_understood(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    folder = copy_model(tmp_path / "m", **changes)
    with pytest.raises(UserError) as caught:
        _ = HFModel(folder).rope
    assert message in str(caught.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = copy_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="can run code"):
        HFModel(folder).tensor("model.norm.weight")


def test_truncated_weights(tmp_path: Path) -> None:
    folder = copy_model(tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or truncated"):
        HFModel(folder).tensor("model.norm.weight")
