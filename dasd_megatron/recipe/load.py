"""Reads a recipe file, applies overrides, and words every mistake so that it can be mended at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dasd_megatron.errors import UserError
from dasd_megatron.recipe.schema import Recipe, Resources, Section, Training

S = TypeVar("S", bound=Section)


class _Loader(yaml.CSafeLoader):
    """Safe YAML that refuses a key given twice (plain YAML silently keeps the last)."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
        key = key_node.value
        if key == "<<":  # merges may come several times
            continue
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)  # type: ignore[arg-type]


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path` with `key.sub=value` overrides applied; values are YAML.

    Paths inside a recipe are relative to the folder where the tool is run. Raises UserError naming file, key and remedy.
    """
    recipe = load_section(path, Recipe, "a recipe is a mapping of keys, such as `name: toy`", overrides)
    for index, stage in enumerate(recipe.stages):
        try:
            recipe.stage_training(stage)
        except ValidationError as error:
            raise UserError(_message(path, error, Training, f"stages.{index}.training.")) from None
    for name, keys in recipe.launch.steps.items():
        try:
            Resources.model_validate(keys)
        except ValidationError as error:
            raise UserError(_message(path, error, Resources, f"launch.steps.{name}.")) from None
    return recipe


def load_section(path: Path, kind: type[S], hint: str, overrides: Sequence[str] = ()) -> S:
    """What the YAML file `path` says, as `kind`. Raises UserError naming file, key and remedy; `hint` where it is no mapping."""
    content = _read(path, hint)
    for override in overrides:
        _apply(content, override)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(_message(path, error, kind)) from None


def _read(path: Path, hint: str) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: {hint}")
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    """Sets one dotted key in place; list entries are named by their index."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r}: write key=value, for example training.steps=10")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not valid YAML") from None
    *parents, last = key.split(".")
    node: Any = content
    for depth, part in enumerate(parents):
        try:
            if isinstance(node, list):
                node = node[int(part)]
            else:
                if node.get(part) is None:
                    node[part] = {}
                node = node[part]
        except (ValueError, IndexError, AttributeError):
            raise UserError(f"override {override!r}: {'.'.join(parents[: depth + 1])} is not in the recipe") from None
    try:
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (ValueError, IndexError, TypeError):
        raise UserError(f"override {override!r}: {key} is not in the recipe") from None


def _message(path: Path, error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    lines = []
    for item in error.errors():
        key = prefix + ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = _nearest(item["loc"], model)
            lines.append(f"unknown key {key!r}" + (f"; the nearest valid name is {near!r}" if near else ""))
        elif item["type"] == "missing":
            lines.append(f"{key!r} is missing")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            given = item["input"]
            shown = "" if isinstance(given, (dict, BaseModel)) else f", not {given!r}"
            lines.append(f"{key}: {reason}{shown}" if key else reason)
    return "\n".join(f"{path}: {line}" for line in lines)


def _nearest(location: tuple[int | str, ...], model: type[BaseModel]) -> str | None:
    """The valid key nearest to the last part of `location`, in the section where it stands or, failing that, anywhere."""
    section: Any = model
    for part in location[:-1]:
        if isinstance(part, str):
            annotation = section.model_fields[part].annotation
            section = _section_of(annotation)
            if section is None:
                return None
    name = str(location[-1])
    here: list[str] = difflib.get_close_matches(name, section.model_fields, n=1, cutoff=0.5)
    if here:
        return ".".join(map(str, [*location[:-1], here[0]]))
    every: dict[str, str] = {path.rpartition(".")[2]: path for path in _all_keys(model)}
    anywhere = difflib.get_close_matches(name, every, n=1, cutoff=0.6)
    return every[anywhere[0]] if anywhere else None


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _section_of(argument)
        if found:
            return found
    return None


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        section = _section_of(field.annotation)
        if section:
            keys += _all_keys(section, f"{prefix}{name}.")
    return keys
