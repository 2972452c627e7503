"""Rules of the code that no linter knows: names, sizes, typed configs, words."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("dasd_megatron", "conversion")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
if not FILES:
    pytest.skip("the sources aren't here", allow_module_level=True)
PROSE = sorted(path for pattern in ("docs/*.md", "examples/**/*.yaml") for path in ROOT.glob(pattern))
PROSE += [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60
# What is a config, by its name in the code. Configs are typed; mappings are for what is loaded, hashed or written.
CONFIGS = {
    "config",
    "settings",
    "execution",
    "options",
    "recipe",
    "training",
    "parallel",
    "memory",
    "limits",
    "request",
}
# Where a config is loaded: Hugging Face's config.json, and a recipe's YAML.
LOADERS = ("dasd_megatron/models/", "dasd_megatron/config/load.py")
# Ours once, and not the field's.
WORDS = re.compile(
    r"\b(reckon\w*|mend(s|ed|ing)?|anew|for want of|taken back|carried|passed over|set aside|besides|share_of_peak)\b",
    re.IGNORECASE,
)


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in FILES:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def name_of(node: ast.expr) -> str:
    """The last name of an expression: `config` of `self._config`."""
    if isinstance(node, ast.Attribute):
        return node.attr.lstrip("_")
    return node.id.lstrip("_") if isinstance(node, ast.Name) else ""


def string_keyed(node: ast.AST) -> str | None:
    """The mapping that a node reads by a string written out, if it does."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return name_of(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get" and node.args:
        first = node.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            return name_of(node.func.value)
    return None


def test_configs_are_read_by_attribute() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, tree in trees()
        if not path.startswith(LOADERS)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript | ast.Call) and string_keyed(node) in CONFIGS
    ]
    assert found == []


def test_the_rule_finds_a_read_by_string() -> None:
    for code in ('context.config["seed"]', 'self._config["a"]["b"]', 'execution.get("threads", 1)'):
        assert any(string_keyed(node) in CONFIGS for node in ast.walk(ast.parse(code)))
    assert not any(string_keyed(node) in CONFIGS for node in ast.walk(ast.parse('row["text"] + config.seed')))


def test_files_and_functions_have_one_subject() -> None:
    long = [str(path) for path in FILES if len(path.read_text().splitlines()) > LONGEST_FILE]
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= LONGEST_FUNCTION:
                long.append(f"{path}:{node.lineno} {node.name}")
    assert long == []


def test_no_two_classes_have_the_same_name() -> None:
    names = Counter(node.name for _, tree in trees() for node in tree.body if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_public_functions_have_the_same_name() -> None:
    """Entry points, and what each model family says in its own way, aside."""
    expected = {"main", "arguments", "problems"}
    names = Counter(
        node.name
        for _, tree in trees()
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    )
    assert [name for name, count in names.items() if count > 1 and name not in expected] == []


def test_no_module_is_named_like_one_of_the_standard_librarys() -> None:
    assert [str(path) for path in FILES if path.stem in sys.stdlib_module_names and path.stem != "__init__"] == []


@pytest.mark.parametrize("path", [*FILES, *PROSE], ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_are_in_the_fields_words(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r'"""See [\w ,]+\."""', text)
    assert WORDS.findall(text) == []
