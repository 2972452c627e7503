"""The reference of settings, made from the sections themselves: as text, as a Markdown page, and as a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dasd_megatron.config.base import Config, Overrides


@dataclass(frozen=True)
class Setting:
    """One setting: its key as an override writes it, its default (`required` where there is none), type and meaning."""

    key: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """One section with its settings; `key` is "" for those at the top of a recipe."""

    key: str
    meaning: str
    settings: tuple[Setting, ...]


def sections(config: type[Config], key: str = "") -> Iterator[Section]:
    """All sections of `config`, each before those inside it."""
    own, inner = [], []
    for name, field in config.model_fields.items():
        path = f"{key}.{name}" if key else name
        members = _members(field)
        if not members:
            own.append(Setting(path, _type(field.annotation), _default(field), field.description or ""))
        for member, suffix in members:
            inner.append((member, path + suffix))
    yield Section(key, config.__doc__ or "", tuple(own))
    for member, path in inner:
        yield from sections(member, path)


def keys(config: type[Config]) -> list[str]:
    """Of all sections and settings."""
    return [key for section in sections(config) for key in (section.key, *(s.key for s in section.settings)) if key]


def as_text(config: type[Config], prefix: str = "") -> str:
    """Every setting whose key begins with `prefix`, with its default and meaning."""
    lines = []
    for section in sections(config):
        for setting in section.settings:
            if not prefix or f"{setting.key}.".startswith(f"{prefix.rstrip('.')}."):
                lines.append(f"{setting.key}: {setting.type} = {setting.default}")
                lines += [f"    {line}" for line in setting.meaning.splitlines()]
    return "\n".join(lines)


def as_markdown(config: type[Config], title: str, introduction: str) -> str:
    """A page: a table for each section."""
    lines = [f"# {title}", "", introduction]
    for section in sections(config):
        lines += ["", f"## {f'`{section.key}`' if section.key else 'At the top'}", "", _paragraphs(section.meaning)]
        if section.settings:
            lines += ["", "| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
        for setting in section.settings:
            cells = (f"`{setting.key}`", f"`{setting.type}`", f"`{setting.default}`", " ".join(setting.meaning.split()))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def as_json_schema(config: type[Config]) -> str:
    """For editors: completion and checks in files of this kind."""
    return json.dumps(config.model_json_schema(), indent=2, ensure_ascii=False)


def _members(field: FieldInfo) -> list[tuple[type[Config], str]]:
    """The sections that a field holds, each with what their keys have between."""
    annotation: Any = field.annotation
    if get_origin(annotation) is list:
        return [(member, f".N{_kind(member)}") for member in _union(get_args(annotation)[0])]
    return [(member, "") for member in _union(annotation) if not issubclass(member, Overrides)]


def _union(annotation: Any) -> list[type[Config]]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, Config) else []
    if get_origin(annotation) is dict:
        return []
    return [member for argument in get_args(annotation) for member in _union(argument)]


def _kind(member: type[Config]) -> str:
    """Which one of a list's kinds of items it is, where there are several."""
    if "kind" not in member.model_fields:
        return ""
    kind: str = get_args(member.model_fields["kind"].annotation)[0]
    return f" (kind: {kind})"


def _type(annotation: Any) -> str:
    """A type as a reader of YAML would put it."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if annotation is type(None):
        return "null"
    if isinstance(annotation, type) and not arguments:
        if issubclass(annotation, Overrides):
            return "mapping"
        return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Path": "path"}.get(
            annotation.__name__, annotation.__name__
        )
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is tuple:
        return f"[{', '.join(_type(argument) for argument in arguments)}]"
    if origin is dict:
        return "mapping"
    if arguments and all(isinstance(argument, str) for argument in arguments):
        return " | ".join(arguments)
    return " | ".join(_type(argument) for argument in arguments)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, Config):
        return "{}"
    return json.dumps(field.default, ensure_ascii=False, default=str)


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
