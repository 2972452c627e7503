"""The language of the conversion tables: one entry a Megatron parameter, with the Hugging Face tensors that make it up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any, Protocol

from dasd_megatron.models.shape import ModelShape
from dasd_megatron.utils.errors import UserError

if TYPE_CHECKING:  # a dry run knows the families, and loads no torch
    import torch

# Sizes of a tensor, by the attributes of ModelShape that they are.
Dims = tuple[str, ...]


class ParamMapping(Protocol):
    """One Megatron parameter; names hold `{layer}` and `{expert}` where there is one for each.

    Where only the Megatron name holds `{expert}`, the Hugging Face tensors hold all experts, in their first dimension.
    """

    @property
    def megatron(self) -> str:
        """Name of the parameter."""

    @property
    def untied_only(self) -> bool:
        """Whether it exists only where the head is no copy of the embedding."""

    @property
    def hf(self) -> tuple[str, ...]:
        """Names of the Hugging Face tensors."""

    @property
    def hf_dims(self) -> tuple[Dims, ...]:
        """Sizes of the Hugging Face tensors (of one expert), in the order of `hf`."""

    @property
    def megatron_dims(self) -> Dims:
        """Sizes of the Megatron parameter."""

    def to_megatron(self, tensors: tuple[torch.Tensor, ...], shape: ModelShape) -> torch.Tensor:
        """The whole Megatron parameter (before any splitting over ranks)."""

    def to_hf(self, parameter: torch.Tensor, shape: ModelShape) -> tuple[torch.Tensor, ...]:
        """The Hugging Face tensors, in the order of `hf`."""


@dataclass(frozen=True)
class DirectMapping:
    """The same tensor under another name."""

    megatron: str
    name: str
    megatron_dims: Dims
    untied_only: bool = False

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def hf_dims(self) -> tuple[Dims, ...]:
        return (self.megatron_dims,)

    def to_megatron(self, tensors: tuple[torch.Tensor, ...], shape: ModelShape) -> torch.Tensor:
        return tensors[0]

    def to_hf(self, parameter: torch.Tensor, shape: ModelShape) -> tuple[torch.Tensor, ...]:
        return (parameter,)


@dataclass(frozen=True)
class QKVMapping:
    """Query, key and value in one matrix, interleaved by query group: the group's queries, its key, its value.

    `columns` is () for their biases.
    """

    megatron: str
    query: str
    key: str
    value: str
    columns: Dims = ("hidden",)
    untied_only: bool = False

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.query, self.key, self.value)

    @property
    def hf_dims(self) -> tuple[Dims, ...]:
        key = ("key_columns", *self.columns)
        return ("query_columns", *self.columns), key, key

    @property
    def megatron_dims(self) -> Dims:
        return ("qkv_columns", *self.columns)

    def to_megatron(self, tensors: tuple[torch.Tensor, ...], shape: ModelShape) -> torch.Tensor:
        import torch

        per_group = [tensor.reshape(shape.query_groups, -1, *tensor.shape[1:]) for tensor in tensors]
        return torch.cat(per_group, 1).flatten(0, 1)

    def to_hf(self, parameter: torch.Tensor, shape: ModelShape) -> tuple[torch.Tensor, ...]:
        import torch

        rows = shape.heads // shape.query_groups * shape.head_dim
        per_group = parameter.reshape(shape.query_groups, -1, *parameter.shape[1:])
        parts = torch.split(per_group, [rows, shape.head_dim, shape.head_dim], 1)
        return tuple(part.flatten(0, 1) for part in parts)


@dataclass(frozen=True)
class GateUpMapping:
    """The gate and up projections of a gated MLP, one after the other."""

    megatron: str
    gate: str
    up: str
    untied_only: bool = False
    megatron_dims: Dims = ("gate_up_columns", "hidden")

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.gate, self.up)

    @property
    def hf_dims(self) -> tuple[Dims, ...]:
        return ("ffn_hidden_size", "hidden"), ("ffn_hidden_size", "hidden")

    def to_megatron(self, tensors: tuple[torch.Tensor, ...], shape: ModelShape) -> torch.Tensor:
        import torch

        return torch.cat(tensors)

    def to_hf(self, parameter: torch.Tensor, shape: ModelShape) -> tuple[torch.Tensor, ...]:
        gate, up = parameter.chunk(2)
        return gate, up


@dataclass(frozen=True)
class InterleavedGateUpMapping:
    """Gate and up projections as one tensor whose last dimension alternates between them: gate 0, up 0, gate 1, ...

    `rows` is () for their biases; matrices are [rows, gate and up], the transpose of Megatron's.
    """

    megatron: str
    name: str
    rows: Dims = ("hidden",)
    untied_only: bool = False

    @property
    def hf(self) -> tuple[str, ...]:
        return (self.name,)

    @property
    def hf_dims(self) -> tuple[Dims, ...]:
        return ((*self.rows, "gate_up_columns"),)

    @property
    def megatron_dims(self) -> Dims:
        return ("gate_up_columns", *self.rows)

    def to_megatron(self, tensors: tuple[torch.Tensor, ...], shape: ModelShape) -> torch.Tensor:
        import torch

        [tensor] = tensors
        return torch.cat([tensor[..., ::2], tensor[..., 1::2]], -1).movedim(-1, 0)

    def to_hf(self, parameter: torch.Tensor, shape: ModelShape) -> tuple[torch.Tensor, ...]:
        import torch

        return (torch.stack(parameter.movedim(0, -1).chunk(2, -1), -1).flatten(-2),)


@dataclass(frozen=True)
class TransposedMapping(DirectMapping):
    """A matrix that Hugging Face keeps as [inputs, outputs]."""

    @property
    def hf_dims(self) -> tuple[Dims, ...]:
        return (self.megatron_dims[::-1],)

    def to_megatron(self, tensors: tuple[torch.Tensor, ...], shape: ModelShape) -> torch.Tensor:
        return tensors[0].t()

    def to_hf(self, parameter: torch.Tensor, shape: ModelShape) -> tuple[torch.Tensor, ...]:
        return (parameter.t(),)


@dataclass(frozen=True)
class ParamInstance:
    """The parameter that an entry is in one layer and of one expert."""

    entry: ParamMapping
    layer: int | None
    expert: int | None
    shape: ModelShape

    @property
    def name(self) -> str:
        """Name of the Megatron parameter."""
        return self.entry.megatron.format(layer=self.layer, expert=self.expert)

    @property
    def hf(self) -> tuple[str, ...]:
        """Names of the Hugging Face tensors."""
        return tuple(name.format(layer=self.layer, expert=self.expert) for name in self.entry.hf)

    @property
    def stacked(self) -> bool:
        """Whether the Hugging Face tensors hold all experts, of which this part is one."""
        return self.expert is not None and "{expert}" not in self.entry.hf[0]

    @property
    def hf_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Sizes of the Hugging Face tensors, all experts of stacked ones included."""
        experts = (self.shape.experts,) if self.stacked else ()
        return tuple((*experts, *_resolve(sizes, self.shape)) for sizes in self.entry.hf_dims)

    @property
    def key(self) -> str:
        """Name in Megatron's checkpoints, which stack layers and experts: [layers, experts, ...]."""
        return self.entry.megatron.replace(".{layer}", "").replace("local_experts.{expert}", "experts")

    @property
    def index(self) -> tuple[int, ...]:
        """Index in the checkpoint's stacked tensor."""
        return tuple(index for index in (self.layer, self.expert) if index is not None)

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """Sizes of the checkpoint's stack: [layers, experts], [layers] or []."""
        layers = () if self.layer is None else (self.shape.layers,)
        return layers if self.expert is None else (*layers, self.shape.experts)

    @property
    def megatron_shape(self) -> tuple[int, ...]:
        """Size of the Megatron parameter."""
        return _resolve(self.entry.megatron_dims, self.shape)

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return math.prod(self.megatron_shape)


def _resolve(sizes: Dims, shape: ModelShape) -> tuple[int, ...]:
    return tuple(getattr(shape, size) for size in sizes)


@dataclass(frozen=True)
class ModelFamily:
    """A model family: which fields of config.json are understood, what they mean to Megatron, and its table.

    Attributes:
        architecture: name in `architectures`.
        used: fields that the Megatron model is built from.
        fixed: fields that change the mathematics, with the only values that are understood (of a list: of its items).
        ignored: fields that change nothing.
        arguments: config -> fields of Megatron's TransformerConfig beyond those that all share (activation_func by name).
        tensors: one entry a Megatron parameter.
        traits: fields of ModelShape that follow from the family: qk_norm, qkv_bias, biases, sinks.
        ffn_field: the field of config.json with the inner size of the MLP, or of each expert.
        head_dim_given: whether config.json must say head_dim; else it is hidden_size / num_attention_heads by default.
        problems: config -> what else is wrong with it, beyond single fields with single values.
    """

    architecture: str
    used: tuple[str, ...]
    fixed: Mapping[str, tuple[Any, ...]]
    ignored: tuple[str, ...]
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    tensors: tuple[ParamMapping, ...] = field(repr=False)
    traits: Mapping[str, bool] = field(default_factory=dict)
    ffn_field: str = "intermediate_size"
    head_dim_given: bool = False
    problems: Callable[[Mapping[str, Any]], Iterable[str]] = lambda config: ()

    def parts(self, shape: ModelShape) -> Iterator[ParamInstance]:
        """Every parameter of the model, layers and experts written out; layer by layer."""
        entries = [entry for entry in self.tensors if not (entry.untied_only and shape.tied)]
        of_layers = [entry for entry in entries if "{layer}" in entry.megatron]
        first = entries.index(of_layers[0])
        for entry in entries[:first]:
            yield ParamInstance(entry, None, None, shape)
        for layer, entry in product(range(shape.layers), of_layers):
            experts = range(shape.experts) if "{expert}" in entry.megatron else (None,)
            for expert in experts:
                yield ParamInstance(entry, layer, expert, shape)
        for entry in entries[first + len(of_layers) :]:
            yield ParamInstance(entry, None, None, shape)

    def check(self, config: Mapping[str, Any], place: str) -> None:
        """Raises UserError for a field that changes the mathematics and isn't understood."""
        if self.head_dim_given and not config.get("head_dim"):
            raise UserError(f"{place}: head_dim is missing, and {self.architecture} doesn't derive it from other sizes")
        for name, value in config.items():
            if name in self.fixed:
                allowed = self.fixed[name]
                items = value if isinstance(value, list) and (value or not allowed) else [value]
                if any(item not in allowed for item in items):
                    raise UserError(
                        f"{place}: {name}={value!r} isn't supported for {self.architecture}; only "
                        f"{allowed[0] if allowed else []!r} is"
                    )
            elif name not in self.used and name not in self.ignored:
                raise UserError(
                    f"{place}: the field {name!r} isn't known for {self.architecture}, and it may change what the model computes"
                )
        for problem in self.problems(config):
            raise UserError(f"{place}: {problem}")
