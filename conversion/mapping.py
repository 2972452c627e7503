"""The language of the conversion tables: one entry a Megatron parameter, with the Hugging Face tensors that make it up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol

import torch

from dasd_megatron.errors import UserError
from dasd_megatron.recipe.shape import Shape


class Entry(Protocol):
    """One Megatron parameter; names hold `{layer}` and `{expert}` where there is one for each."""

    @property
    def megatron(self) -> str:
        """Name of the parameter."""

    @property
    def untied_only(self) -> bool:
        """Whether it exists only where the head is no copy of the embedding."""

    @property
    def hf(self) -> tuple[str, ...]:
        """Names of the Hugging Face tensors."""

    def to_megatron(self, tensors: tuple[torch.Tensor, ...], shape: Shape) -> torch.Tensor:
        """The whole Megatron parameter (before any splitting over ranks)."""

    def to_hf(self, parameter: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
        """The Hugging Face tensors, in the order of `hf`."""


@dataclass(frozen=True)
class Plain:
    """The same tensor under another name."""

    megatron: str
    name: str
    untied_only: bool = False

    @property
    def hf(self) -> tuple[str, ...]:
        """See Entry."""
        return (self.name,)

    def to_megatron(self, tensors: tuple[torch.Tensor, ...], shape: Shape) -> torch.Tensor:
        """See Entry."""
        return tensors[0]

    def to_hf(self, parameter: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
        """See Entry."""
        return (parameter,)


@dataclass(frozen=True)
class QKV:
    """Query, key and value in one matrix, interleaved by query group: the group's queries, its key, its value."""

    megatron: str
    query: str
    key: str
    value: str
    untied_only: bool = False

    @property
    def hf(self) -> tuple[str, ...]:
        """See Entry."""
        return (self.query, self.key, self.value)

    def to_megatron(self, tensors: tuple[torch.Tensor, ...], shape: Shape) -> torch.Tensor:
        """See Entry."""
        per_group = [tensor.reshape(shape.query_groups, -1, *tensor.shape[1:]) for tensor in tensors]
        return torch.cat(per_group, 1).flatten(0, 1)

    def to_hf(self, parameter: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
        """See Entry."""
        rows = shape.heads // shape.query_groups * shape.head_dim
        per_group = parameter.reshape(shape.query_groups, -1, *parameter.shape[1:])
        parts = torch.split(per_group, [rows, shape.head_dim, shape.head_dim], 1)
        return tuple(part.flatten(0, 1) for part in parts)


@dataclass(frozen=True)
class GateUp:
    """The gate and up projections of a gated MLP, one after the other."""

    megatron: str
    gate: str
    up: str
    untied_only: bool = False

    @property
    def hf(self) -> tuple[str, ...]:
        """See Entry."""
        return (self.gate, self.up)

    def to_megatron(self, tensors: tuple[torch.Tensor, ...], shape: Shape) -> torch.Tensor:
        """See Entry."""
        return torch.cat(tensors)

    def to_hf(self, parameter: torch.Tensor, shape: Shape) -> tuple[torch.Tensor, ...]:
        """See Entry."""
        gate, up = parameter.chunk(2)
        return gate, up


@dataclass(frozen=True)
class Family:
    """A model family: which fields of config.json are understood, what they mean to Megatron, and its table.

    Attributes:
        architecture: name in `architectures`.
        used: fields that the Megatron model is built from.
        fixed: fields that change the mathematics, with the only values that are understood (of a list: of its items).
        ignored: fields that change nothing.
        arguments: config -> fields of Megatron's TransformerConfig beyond those that all families share.
        tensors: one entry a Megatron parameter.
        head_dim_given: whether config.json must say head_dim; else it is hidden_size / num_attention_heads by default.
    """

    architecture: str
    used: tuple[str, ...]
    fixed: Mapping[str, tuple[Any, ...]]
    ignored: tuple[str, ...]
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]]
    tensors: tuple[Entry, ...] = field(repr=False)
    head_dim_given: bool = False

    def entries(self, shape: Shape) -> Iterator[tuple[str, tuple[str, ...], Entry]]:
        """(Megatron name, HF names, entry) of every parameter, layers and experts written out."""
        for entry in self.tensors:
            if entry.untied_only and shape.tied:
                continue
            layers = range(shape.layers) if "{layer}" in entry.megatron else (0,)
            experts = range(shape.experts) if "{expert}" in entry.megatron else (0,)
            for layer, expert in product(layers, experts):
                names = tuple(name.format(layer=layer, expert=expert) for name in entry.hf)
                yield entry.megatron.format(layer=layer, expert=expert), names, entry

    def check(self, config: Mapping[str, Any], place: str) -> None:
        """Raises UserError for a field that changes the mathematics and isn't understood."""
        if self.head_dim_given and not config.get("head_dim"):
            raise UserError(f"{place}: head_dim is missing, and {self.architecture} doesn't derive it from other sizes")
        for name, value in config.items():
            if name in self.fixed:
                allowed = self.fixed[name]
                if any(item not in allowed for item in (value if isinstance(value, list) else [value])):
                    raise UserError(
                        f"{place}: {name}={value!r} isn't supported for {self.architecture}; only "
                        f"{allowed[0] if allowed else []!r} is"
                    )
            elif name not in self.used and name not in self.ignored:
                raise UserError(
                    f"{place}: the field {name!r} isn't known for {self.architecture}, and it may change what the model computes"
                )
