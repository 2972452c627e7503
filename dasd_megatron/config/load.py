"""Reads a recipe file, applies overrides, and words every mistake so that it can be fixed at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from dasd_megatron.config.base import Config, section_of
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.registry import load_plugins

S = TypeVar("S", bound=Config)
# In place of pydantic's own words, by its type of error.
WORDING = {
    "model_type": "give a mapping of keys",
    "model_attributes_type": "give a mapping of keys",
    "dict_type": "give a mapping of keys",
    "list_type": "give a list",
    "string_pattern_mismatch": "only lower-case letters, digits and _, a letter first",
}


# Settings of older recipes, and what is written in their place.
MOVED = {
    "prompts.test": "evaluation.benchmarks: [{name: test, path: FILE, grader: number}]",
    "evaluation.grader": "the grader of prompts.train, and of each of evaluation.benchmarks",
    "evaluation.problems_per_shard": "evaluation.answers_per_shard",
}


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
    """The recipe in `path` with `key.sub=value` overrides applied; values are YAML. Imports its plugins.

    Paths inside a recipe are relative to the folder where the tool is run. Raises UserError naming file, key and remedy.
    """
    recipe = load_section(path, Recipe, "a recipe is a mapping of keys, such as `name: toy`", overrides)
    load_plugins(recipe.plugins, str(path))
    return recipe


def recipe_text(recipe: Recipe) -> str:
    """The recipe with its overrides, as a recipe file.

    Without defaults: there are settings that something else overrules unless they were written down, as a benchmark's own length
    does with evaluation.max_tokens.
    """
    return yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def load_section(path: Path, kind: type[S], hint: str, overrides: Sequence[str] = ()) -> S:
    """What the YAML file `path` says, as `kind`. Raises UserError naming file, key and remedy; `hint` where it is no mapping."""
    content = _read(path, hint)
    for override in overrides:
        _apply(content, override)
    return validate(str(path), content, kind)


def validate(where: str, content: Mapping[str, Any], kind: type[S]) -> S:
    """`content` as `kind`. Raises UserError with a line for each mistake, after `where`, a file or a key."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise UserError(_message(where, error, kind)) from None


def _read(path: Path, hint: str) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # a date that isn't one, say: 2025-02-30
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
    except (yaml.YAMLError, ValueError):
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


def _message(where: str, error: ValidationError, model: type[Config]) -> str:
    lines = []
    for item in error.errors():
        parts, section = _walk(item["loc"], model)
        key = ".".join(parts)
        if item["type"] == "extra_forbidden":
            moved = f"; write {MOVED[key]}" if key in MOVED else None
            lines.append(f"unknown key {key!r}{moved or _remedy(parts, item['loc'], section, model)}")
        elif item["type"] == "missing":
            lines.append(f"{key!r} is missing")
        elif item["type"].startswith("union_tag"):
            kinds = " or ".join(_kinds_at(item["loc"], model))
            lines.append(f"{key}.kind: must be {kinds}, not {item['ctx'].get('tag', 'left out')}")
        else:
            reason = item["msg"].removeprefix("Value error, ")
            reason = WORDING.get(item["type"], reason)
            given = item["input"]
            shown = "" if isinstance(given, (dict, BaseModel)) else f", not {'null' if given is None else repr(given)}"
            lines.append(f"{key}: {reason}{shown}" if key else reason)
    return "\n".join(f"{where}: {line}" for line in lines)


def _walk(location: Sequence[int | str], model: type[Config]) -> tuple[list[str], type[Config] | None]:
    """A place as it is written in a recipe, and the section that its last key stands in; None where that is no section.

    Pydantic's own names also hold the kind that an item of a list was taken for.
    """
    parts: list[str] = []
    section: type[Config] | None = model
    annotation: Any = model
    for depth, part in enumerate(location):
        if isinstance(part, int):
            parts.append(str(part))
            annotation = get_args(annotation)[0] if get_args(annotation) else annotation
            continue
        members = _kinds(annotation)
        if part in members:
            annotation = section = members[part]
            continue
        parts.append(part)
        section = section_of(annotation)
        if depth < len(location) - 1:
            if section is not None and part in section.model_fields:
                annotation = section.model_fields[part].rebuild_annotation()
            else:  # a name of one's own in a mapping, such as a step under launch.steps
                annotation = get_args(annotation)[-1] if get_args(annotation) else None
    return parts, section


def _kinds(annotation: Any) -> dict[str, type[Config]]:
    """Kind -> section, of a union whose members say by `kind` which they are."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    members = [member for member in get_args(annotation) if isinstance(member, type) and issubclass(member, Config)]
    found = {}
    for member in members:
        if "kind" in member.model_fields:
            found[get_args(member.model_fields["kind"].annotation)[0]] = member
    return found


def _kinds_at(location: Sequence[int | str], model: type[Config]) -> dict[str, type[Config]]:
    """Kind -> section, of the kinds that an item of the list at `location` may have."""
    annotation: Any = model
    for part in location:
        if isinstance(part, int):
            annotation = get_args(annotation)[0]
        elif (section := section_of(annotation)) is not None:
            annotation = section.model_fields[part].rebuild_annotation()
    return _kinds(annotation)


def _remedy(
    parts: Sequence[str], location: Sequence[int | str], section: type[Config] | None, model: type[Config]
) -> str:
    """What to write in place of an unknown key, where that can be guessed."""
    if len(location) >= 3 and isinstance(location[-3], int):  # an item of a list, taken for one of its kinds
        others = [kind for kind, other in _kinds_at(location[:-2], model).items() if parts[-1] in other.model_fields]
        if others:
            return f": one of kind {location[-2]} has no {parts[-1]}, one of kind {others[0]} has"
    near = _nearest(parts, section, model)
    return f"; the nearest valid name is {near!r}" if near else ""


def _nearest(parts: Sequence[str], section: type[Config] | None, model: type[Config]) -> str | None:
    """The valid key nearest to the last of `parts`, in the section where it stands or, failing that, anywhere."""
    if section is not None:
        here: list[str] = difflib.get_close_matches(parts[-1], section.model_fields, n=1, cutoff=0.5)
        if here:
            return ".".join([*parts[:-1], here[0]])
    every: dict[str, str] = {path.rpartition(".")[2]: path for path in _all_keys(model)}
    anywhere = difflib.get_close_matches(parts[-1], every, n=1, cutoff=0.6)
    return every[anywhere[0]] if anywhere else None


def _all_keys(model: type[Config], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        section = section_of(field.annotation)
        if section and get_origin(field.annotation) is not list:
            keys += _all_keys(section, f"{prefix}{name}.")
    return keys
