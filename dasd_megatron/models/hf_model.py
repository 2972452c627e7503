"""A Hugging Face model folder: its config and family, and its tensors from safetensors, mapped into memory one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from dasd_megatron.models.families.decoder import DEFAULT_EPSILON
from dasd_megatron.models.families.registry import FAMILIES
from dasd_megatron.models.hf_config import architecture_of, family_of, read_config, shape_of
from dasd_megatron.models.mxfp4 import BLOCKS, SCALES, unpack, unpacked_size
from dasd_megatron.models.parameter_mapping import ModelFamily, ParamInstance
from dasd_megatron.models.rope import Rope, rope, rope_settings
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.utils.errors import UserError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Names of floating-point types in safetensors files.
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
# Written by old versions of transformers; it follows from config.json.
DERIVED = "rotary_emb.inv_freq"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_NUMBERS = ("rms_norm_eps", "max_position_embeddings", "swiglu_limit")
_SWITCHES = ("norm_topk_prob", "tie_word_embeddings")
NAMED = 3  # of many wrong tensors, how many a message names


@dataclass(frozen=True)
class StoredTensor:
    """What a safetensors file says of a tensor."""

    file: Path
    dtype: str
    size: tuple[int, ...]
    packed: bool = False


class HFModel:
    """Read access. Raises UserError for a folder that is no model of a known family."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise UserError(f"{folder}: no such model folder")
        self.config = read_config(folder)
        family = family_of(self.config)
        if family is None:
            raise UserError(
                f"{folder}: the architecture {architecture_of(self.config) or self.config.get('architectures')} isn't supported; "
                f"supported: {', '.join(FAMILIES.names())}"
            )
        self.family: ModelFamily = family
        self.family.check(self.config, str(folder / "config.json"))
        _check_values(self.config, str(folder / "config.json"))
        rope_settings(self.config, str(folder / "config.json"))
        self._opened: dict[Path, Any] = {}

    @cached_property
    def shape(self) -> ModelShape:
        """The model's sizes."""
        return shape_of(self.config, self.folder)

    @property
    def norm_epsilon(self) -> float:
        """Of every RMSNorm."""
        return float(self.config.get("rms_norm_eps", DEFAULT_EPSILON))

    @property
    def router_aux_loss_coef(self) -> float:
        """Weight of the load-balancing loss that the model was made with; transformers' default where it isn't said."""
        return float(self.config.get("router_aux_loss_coef", 0.001))

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model is made for, where its config says so."""
        positions: int | None = self.config.get("max_position_embeddings")
        return positions

    @property
    def quantized(self) -> bool:
        """Whether its weights are packed."""
        return bool(self.config.get("quantization_config"))

    @cached_property
    def megatron_arguments(self) -> dict[str, Any]:
        """Fields of Megatron's TransformerConfig beyond those that all families share."""
        return {"ffn_hidden_size": self.config["intermediate_size"], **self.family.arguments(self.config)}

    @cached_property
    def rope(self) -> Rope:
        """The rotary embedding. Raises UserError for a kind that isn't supported."""
        return rope(self.config, self.shape.head_dim, str(self.folder / "config.json"))

    @cached_property
    def parts(self) -> list[ParamInstance]:
        """Every parameter of the model, by the family's table."""
        return list(self.family.parts(self.shape))

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The model's tensors by name; packed ones as what they are unpacked to. Reads the headers of the files.

        Raises UserError where one is damaged.
        """
        found = dict(self._stored)
        for name in self._stored:
            whole = name.removesuffix(BLOCKS)
            if whole != name and whole + SCALES in self._stored:
                blocks, scales = found.pop(name), found.pop(whole + SCALES)
                size = unpacked_size(blocks.size, scales.size)
                if size is None or {blocks.dtype, scales.dtype} != {"U8"}:
                    raise UserError(
                        f"{blocks.file}: {name}: {blocks.size} with scales of {scales.size} is no MXFP4 tensor"
                    )
                found[whole] = StoredTensor(blocks.file, "BF16", size, packed=True)
        return found

    @cached_property
    def _stored(self) -> dict[str, StoredTensor]:
        """What the safetensors files hold, by name."""
        found: dict[str, StoredTensor] = {}
        for path, indexed in self._files().items():
            file = self._open(path)
            for name in file.keys():  # noqa: SIM118 (it's no mapping)
                if name in found:
                    raise UserError(f"{path}: {name} is in {found[name].file.name}, too; fetch the model again")
                content = file.get_slice(name)
                found[name] = StoredTensor(path, content.get_dtype(), tuple(content.get_shape()))
            absent = [name for name in indexed if name not in found]
            if absent:
                raise UserError(f"{path}: {_some(absent)} should be in it by {INDEX}; fetch the model again")
        return found

    def check_tensors(self) -> None:
        """Raises UserError unless the files hold exactly the tensors of the family's table, in the config's sizes."""
        wanted = {name: size for part in self.parts for name, size in zip(part.hf, part.hf_shapes, strict=True)}
        missing = [name for name in wanted if name not in self.tensors]
        if missing:
            raise UserError(
                f"{self.folder}: without {_some(missing)}, which config.json implies; fetch the model again"
            )
        for name, size in wanted.items():
            stored = self.tensors[name]
            if stored.size != size:
                raise UserError(f"{stored.file}: {name} is {list(stored.size)}, but config.json implies {list(size)}")
            if stored.dtype not in DTYPES:
                raise UserError(f"{stored.file}: {name} is of type {stored.dtype}; only {', '.join(DTYPES)} are read")
        surplus = [name for name in self.tensors if name not in wanted and not self._harmless(name)]
        if surplus:
            raise UserError(
                f"{self.folder}: {_some(surplus)} is unknown to {self.family.architecture}; a conversion would lose it"
            )

    def check_types(self) -> None:
        """Raises UserError where tensors that a Megatron checkpoint keeps in one are of several types."""
        first: dict[str, str] = {}
        for part in self.parts:
            for name in part.hf:
                other = first.setdefault(part.key, name)
                if self.dtype(name) is not self.dtype(other):
                    raise UserError(
                        f"{self.tensors[name].file}: {name} is {self.dtype(name)}, but {other}, which goes into the same "
                        f"tensor, {self.dtype(other)}; say with --dtype which type all weights are to have"
                    )

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, its content still in the file until it is read; of a packed one, its blocks or its scales.

        Raises UserError where it is missing.
        """
        stored = self._stored.get(name)
        if stored is None:
            raise UserError(f"{self.folder}: the tensor {name} is missing")
        content: torch.Tensor = self._open(stored.file).get_tensor(name)
        return content

    def sources(self, part: ParamInstance) -> tuple[torch.Tensor, ...]:
        """The tensors that make up one Megatron parameter; of those that hold all experts, the one expert's, unpacked."""
        if not part.stacked:
            return tuple(self.tensor(name) for name in part.hf)
        return tuple(self._of_expert(name, part.expert) for name in part.hf)

    def parameter(self, part: ParamInstance) -> torch.Tensor:
        """One Megatron parameter, made from the tensors that the table says."""
        return part.entry.to_megatron(self.sources(part), self.shape)

    def _of_expert(self, name: str, expert: int | None) -> torch.Tensor:
        if self.tensors[name].packed:
            return unpack(self.tensor(name + BLOCKS)[expert], self.tensor(name + SCALES)[expert]).mT
        return self.tensor(name)[expert]

    def dtype(self, name: str) -> torch.dtype:
        """Of one tensor."""
        return DTYPES[self.tensors[name].dtype]

    def _harmless(self, name: str) -> bool:
        """Whether a tensor outside the table says nothing that isn't said already."""
        if name == HEAD and self.shape.tied:  # some write the tied head as well
            return torch.equal(self.tensor(HEAD), self.tensor(EMBEDDING))
        return name.endswith(DERIVED)

    def _files(self) -> dict[Path, list[str]]:
        """The weights' files, with the names that the index says are in them."""
        index, path = self.folder / INDEX, self.folder / WEIGHTS
        if not index.is_file():
            if not path.is_file():
                raise UserError(
                    f"{self.folder}: no {WEIGHTS} and no {INDEX}; other formats (pickle) aren't read, for they can run code"
                )
            return {path: []}
        if path.is_file():
            raise UserError(f"{self.folder}: both {WEIGHTS} and {INDEX}; remove the one that isn't meant")
        files: dict[Path, list[str]] = {}
        try:
            for name, file in json.loads(index.read_text())["weight_map"].items():
                if Path(file).name != file:
                    raise UserError(f"{index}: {file}: weights must lie in the model's folder")
                files.setdefault(self.folder / file, []).append(name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index}: damaged: {error!r}; fetch the model again") from None
        for file_path in files:
            if not file_path.is_file():
                raise UserError(f"{index}: names {file_path.name}, which isn't there; fetch the model again")
        return files

    def _open(self, path: Path) -> Any:
        if path not in self._opened:
            try:
                self._opened[path] = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"{path}: damaged or truncated: {error}; fetch the model again") from None
        return self._opened[path]


def _check_values(config: dict[str, Any], place: str) -> None:
    """Raises UserError for a value that is no number where one is meant, or neither true nor false."""
    for name in _NUMBERS:
        value = config.get(name, 1)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise UserError(f"{place}: {name} must be a positive number, not {value!r}")
    for name in _SWITCHES:
        if not isinstance(config.get(name, False), bool):
            raise UserError(f"{place}: {name} must be true or false, not {config[name]!r}")
    quantization = config.get("quantization_config")
    if quantization is not None and not isinstance(quantization, dict):
        raise UserError(f"{place}: quantization_config must be a mapping, not {quantization!r}")


def dtype_named(name: str) -> torch.dtype:
    """Of a name such as bfloat16."""
    return next(dtype for dtype in DTYPES.values() if str(dtype) == f"torch.{name}")


def _some(names: Iterable[str]) -> str:
    """A few of many names."""
    names = list(names)
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
