"""Import and export: exact for every family, size, type and layout; and never half done."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conversion.checkpoint_metadata import read_index
from conversion.convert import export_hf, import_hf
from conversion.hf_model import HFModel
from conversion.megatron_checkpoint import MegatronCheckpoint
from conversion.safetensors_writer import bytes_of
from dasd_megatron.errors import UserError
from dasd_megatron.recipe.schema import Parallel
from tests.conftest import ROOT
from tests.integration.layout_ranks import run_on_ranks
from tests.models import FAMILIES, tiny_model
from tests.training_runs import Runs

CONVERT = [sys.executable, "tools/convert.py"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert bytes_of(tensor.contiguous()) == bytes_of(after[name].contiguous()), name  # NaN, -0.0 and all


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
    run_on_ranks("resave", Parallel(), tmp_path / "result", **arguments)
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


LAYOUTS = [
    ("qwen3", 3, Parallel(pipeline=3)),
    ("qwen3", 4, Parallel(tensor=2, pipeline=2)),
    ("qwen2", 4, Parallel(pipeline=2, virtual_pipeline=2)),
    ("llama", 3, Parallel(tensor=2, context=1, data=1)),
    ("qwen3_moe", 3, Parallel(expert=2, data=2)),
    ("qwen3_moe", 2, Parallel(tensor=2, expert=2, context=1)),
    ("qwen3", 3, Parallel(context=2)),
    ("gpt_oss", 4, Parallel(tensor=2, pipeline=2)),
]


@pytest.mark.parity
@pytest.mark.parametrize(("family", "layers", "parallel"), LAYOUTS, ids=lambda value: str(value))
def test_any_layout_loads_an_import_and_is_exported(
    family: str, layers: int, parallel: Parallel, tmp_path: Path
) -> None:
    """The vocabulary of 131 is padded where it is split over ranks; no layout's padding comes out."""
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


def test_a_failure_leaves_no_parents(tmp_path: Path) -> None:
    done = run("import", "--hf", tmp_path / "absent", "--megatron", tmp_path / "a" / "b" / "out")
    assert (done.returncode, "no such model folder" in done.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


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


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CONVERT, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """The command in this process: exit code, standard output, standard error."""
    spec = importlib.util.spec_from_file_location("convert_tool", ROOT / "tools" / "convert.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["convert.py", *map(str, arguments)])
        capsys.readouterr()
        code = tool.run(tool.parse())
        return code, *capsys.readouterr()

    return command


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = weights(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_of(folder: Path, **files: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = load_file(folder / "model-00001-of-00002.safetensors")
    weight_map = {**dict.fromkeys(names, "model-00001-of-00002.safetensors"), **files}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


NORM = "model.norm.weight"
LAYER_NORM, QUERY = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"
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
    "truncated": (lambda f: cut(f / "model.safetensors"), "damaged or cut off"),
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


def into_steps(folder: Path) -> None:
    aside = folder.rename(folder.with_name("step-0000005"))
    folder.mkdir()
    aside.rename(folder / aside.name)


BAD_CHECKPOINTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "poisoned": (poison, "asks for posix.system, which no index needs and which could run code"),
    "no index": (lambda f: (f / ".metadata").unlink(), "no Megatron distributed checkpoint (no .metadata in it)"),
    "damaged index": (lambda f: cut(f / ".metadata"), ".metadata: damaged"),
    "truncated": (lambda f: cut(f / "__0_0.distcp"), "__0_0.distcp: cut off at"),
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


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 60 MB, which takes a moment to convert."""
    folder = tmp_path_factory.mktemp("larger")
    return tiny_model(folder / "hf", vocab_size=20_000, hidden_size=512, intermediate_size=1024, num_hidden_layers=2)


def convert_to(disk: Path, convert: Callable[[Path], object]) -> str:
    """The message of a conversion to a disk that is too small, which leaves nothing on it."""
    from conversion.aside import written_aside

    with pytest.raises(UserError) as caught, written_aside(disk / "out") as folder:
        convert(folder)
    assert list(disk.iterdir()) == []
    return str(caught.value)


def test_a_disk_without_space_is_refused_before_anything_is_written(
    larger: Path, small_disk: Callable[[str], Path]
) -> None:
    message = convert_to(small_disk("30m"), lambda folder: import_hf(larger, folder))
    assert "96.1 MB are needed, but 31.5 MB are free" in message


@pytest.mark.parametrize("size", ["1m", "30m", "88m"])
def test_a_disk_that_fills_up_meanwhile(
    larger: Path, size: str, small_disk: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_hf(larger, tmp_path / "megatron")
    monkeypatch.setattr("conversion.convert.check_free_space", lambda folder, needed: None)
    disk = small_disk(size)
    assert "the disk is full" in convert_to(disk, lambda folder: import_hf(larger, folder))
    assert "the disk is full" in convert_to(disk, lambda folder: export_hf(tmp_path / "megatron", folder))


def test_killed_at_any_moment(larger: Path, tmp_path: Path) -> None:
    """SIGKILL to the command alone: its workers end, the output is absent, and the next run is as if nothing had been."""
    generator = random.Random(0)
    megatron = tmp_path / "megatron"
    begin = time.monotonic()
    assert run("import", "--hf", larger, "--megatron", tmp_path / "whole").returncode == 0
    duration = time.monotonic() - begin
    killed = 0
    for attempt in range(8):
        with subprocess.Popen(
            [*CONVERT, "import", "--hf", str(larger), "--megatron", str(megatron)], cwd=ROOT
        ) as process:
            if attempt < 4:
                time.sleep(generator.uniform(0, duration))
            else:  # while it writes
                while process.poll() is None and not list(tmp_path.glob(".megatron.tmp/*.distcp")):
                    time.sleep(0.001)
                time.sleep(generator.uniform(0, 0.1))
            workers = children(process.pid)
            process.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs(workers, 10)
        assert not alive
        if megatron.exists():  # it was faster
            shutil.rmtree(megatron)
        else:
            killed += 1
    assert killed > 2
    assert run("import", "--hf", larger, "--megatron", megatron).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "megatron"}
    for path in (tmp_path / "whole").glob("*.distcp"):
        assert path.read_bytes() == (megatron / path.name).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop(larger: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C reaches the workers as well; a system's SIGTERM may reach the command alone."""
    command = [*CONVERT, "import", "--hf", str(larger), "--megatron", str(tmp_path / "out")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        while process.poll() is None and not list(tmp_path.glob(".out.tmp/*.distcp")):
            time.sleep(0.001)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=60)
    if process.returncode:  # it may have been faster
        assert (process.returncode, errors.strip()) == (130, "stopped; nothing was left behind")
        assert list(tmp_path.iterdir()) == []


def children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    from conversion.aside import written_aside

    with written_aside(tmp_path / "out") as folder:
        (folder / "file").write_text("content")
        with pytest.raises(UserError, match="another conversion is writing it"), written_aside(tmp_path / "out"):
            pass
    assert (tmp_path / "out" / "file").read_text() == "content"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_outlives_its_checkpoint(tmp_path: Path) -> None:
    """Training may remove a checkpoint in favour of newer ones while it is being read."""
    hf = HFModel(tiny_model(tmp_path / "hf"))
    import_hf(hf.folder, tmp_path / "megatron")
    checkpoint = MegatronCheckpoint(tmp_path / "megatron")
    shutil.rmtree(tmp_path / "megatron")
    for part in hf.parts:
        assert torch.equal(checkpoint.parameter(part), hf.parameter(part))


def test_export_while_training_writes_other_checkpoints(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    live = runs.run("live", Parallel(), steps=60, save_every=1, keep_every=1, async_save=True)
    with live.start() as process:
        exported = 0
        while process.poll() is None:
            steps = sorted(live.output.glob("step-*")) if live.output.is_dir() else []
            if len(steps) <= exported:
                time.sleep(0.01)
                continue
            done = run("export", "--megatron", steps[-1], "--hf", tmp_path / steps[-1].name)
            assert done.returncode == 0, done.stderr
            exported = len(steps)
        assert process.returncode == 0
    folders = sorted(tmp_path.glob("step-*"))
    assert len(folders) > 1
    for folder in folders:
        export_hf(live.output / folder.name, tmp_path / f"again-{folder.name}")
        assert_same(weights(folder), weights(tmp_path / f"again-{folder.name}"))
    assert not torch.equal(weights(folders[0])[NORM], weights(folders[-1])[NORM])
