"""The documentation: links that lead somewhere, commands that exist, settings and examples as the code has them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from dasd_megatron.cli.main import COMMANDS, main
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from tests.conftest import ROOT
from tests.helpers.documentation import DOCS, PAGES, Command, command_lines, name_of, tokens

if not DOCS.is_dir():
    pytest.skip("the documentation isn't here", allow_module_level=True)

GUIDE = ROOT / "CONTRIBUTING.md"
# Folders of the repository: an argument or a path that begins with one of them must exist.
FOLDERS = ("benchmarks", "conversion", "dasd_megatron", "docker", "docs", "examples", "tests", "tools")


def of_repository(text: str) -> bool:
    """Whether a text is the path of a file of the repository; capitals stand for a name that the reader gives."""
    return bool(re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]*", text)) and not re.search(r"\b[A-Z]{2,}\b", text)


@cache
def anchors(path: Path) -> set[str]:
    """Of the page's headings, as GitHub makes them: lower case, hyphens for spaces, no punctuation; repeated ones numbered."""
    seen: Counter[str] = Counter()
    made = set()
    page = tokens(path)
    for token, inline in pairwise(page):
        if token.type == "heading_open":
            text = "".join(part.content for part in inline.children or [] if part.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            made.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
    return made


def links(path: Path) -> Iterator[str]:
    for token in tokens(path):
        if token.type == "link_open":
            yield str(token.attrs["href"])
        elif token.type == "image":
            yield str(token.attrs["src"])


def dead_links(path: Path) -> list[str]:
    dead = []
    for link in links(path):
        place, _, anchor = link.partition("#")
        target = (path.parent / place).resolve() if place else path
        if re.match(r"\w+:", link):
            continue
        if not (target.is_relative_to(ROOT) and target.exists()) or (anchor and anchor not in anchors(target)):
            dead.append(link)
    return dead


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    assert dead_links(path) == []


def test_dead_links_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.unit.test_docs.ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# A `b` (c)\n[1](page.md#a-b-c) [2](page.md#b) [3](none.md) [4](../page.md) [5](https://x.org)\n")
    assert dead_links(page) == ["page.md#b", "none.md", "../page.md"]


# The changelog also names what was; the guide to contributing, files that are to be made.
@pytest.mark.parametrize("path", [path for path in PAGES if path not in (GUIDE, ROOT / "CHANGELOG.md")], ids=name_of)
def test_paths_in_the_text_exist(path: Path) -> None:
    """Files of the repository that a page names in code."""
    words = [word for token in tokens(path) if token.type == "code_inline" for word in token.content.split()]
    assert [word for word in words if of_repository(word) and not (ROOT / word).exists()] == []


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=name_of)
def test_blocks_in_lists_are_indented_by_four(path: Path) -> None:
    """As Python-Markdown wants it, which makes the site: with fewer a list ends at its first block."""
    fences = re.findall(r"^( *)```", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert [len(indent) for indent in fences if len(indent) % 4] == []


@pytest.mark.parametrize(
    ("page", "options"),
    [("settings.md", []), ("cluster-settings.md", ["--cluster"]), ("study-settings.md", ["--study"])],
)
def test_pages_of_settings_are_generated(page: str, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["settings", *options, "--markdown"]
    main(command)
    generated = capsys.readouterr().out
    assert (DOCS / page).read_text(encoding="utf-8") == generated, (
        f"to write it again: dasd {' '.join(command)} > docs/{page}"
    )


COMMAND_LINES = [command for path in PAGES for command in command_lines(path)]


@cache
def help_of(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dasd_megatron.cli.main", *command, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout


def mistakes(command: Command) -> list[str]:
    """What a command line names and isn't there."""
    program, *arguments = command.words
    files = [word for word in arguments if of_repository(word) and not (ROOT / word).exists()]
    if files:
        return files
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return [word for word in arguments if not word.startswith("-") and "=" not in word and word not in targets]
    if program == "python" and arguments[0] == "-m":
        return [] if importlib.util.find_spec(arguments[1]) else [arguments[1]]
    if program == "python":
        script = Path(arguments[0])
        return mistakes_of_command([script.stem, *arguments[1:]]) if script.parts[0] == "tools" else []
    return mistakes_of_command(arguments)


def mistakes_of_command(arguments: list[str]) -> list[str]:
    """Of one of ours: its name, its options, the recipe's keys, and the names of steps and stages."""
    name, *rest = arguments
    if name.startswith("-"):
        return [word for word in arguments if word not in help_of()]
    if name not in COMMANDS:
        return [name]
    inner = rest[:1] if name == "convert" else []
    shown = help_of(name, *inner)
    wrong = [word for word in rest if word.startswith("--") and not re.search(rf"(?<!\S){word}(?![\w-])", shown)]
    recipe = next((word for word in rest if of_repository(word) and word.endswith("recipe.yaml")), None)
    return wrong or ([] if recipe is None else mistakes_of_recipe(Path(recipe), rest))


def mistakes_of_recipe(path: Path, arguments: list[str]) -> list[str]:
    """Raises UserError for a key that isn't one of a recipe's."""
    recipe = load_recipe(path, [word for word in arguments if re.fullmatch(r"[\w.]+=.*", word)])
    named = {option: word for option, word in pairwise(arguments) if option.startswith("--")}
    wrong = {named["--stage"]} - {stage.name for stage in recipe.stages} if "--stage" in named else set()
    asked = {word for option, word in named.items() if option in ("--step", "--only")}
    if asked and recipe.student.model.is_dir():
        wrong |= asked - set(build_steps(recipe))
    return sorted(wrong)


@pytest.mark.parametrize("command", COMMAND_LINES, ids=str)
def test_commands_exist(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert mistakes(command) == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("dasd launch examples/toy/recipe.yaml --dry-run seed=2", []),
        ("dasd lunch examples/toy/recipe.yaml", ["lunch"]),
        ("dasd --versions", ["--versions"]),
        ("dasd launch examples/toy/recipes.yaml", ["examples/toy/recipes.yaml"]),
        ("dasd launch my.yaml --dry", ["--dry"]),
        ("dasd convert import --hff DIR", ["--hff"]),
        ("python tools/train.py examples/toy/recipe.yaml --stage low", ["low"]),
        ("python tools/curate.py examples/toy/recipe.yaml --step filter_low", ["filter_low"]),
        ("python tools/none.py my.yaml", ["tools/none.py"]),
        ("python -m benchmarks.none", ["benchmarks.none"]),
        ("make nothing", ["nothing"]),
    ],
)
def test_mistakes_are_found(line: str, wrong: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert mistakes(Command(ROOT / "README.md", tuple(line.split()))) == wrong


def test_examples_of_the_guide_run(tmp_path: Path) -> None:
    """Its blocks of `python` are whole modules (those of `py` are parts): each is imported, all in one process."""
    modules = [token.content for token in tokens(GUIDE) if token.type == "fence" and token.info == "python"]
    assert len(modules) >= 6
    for number, module in enumerate(modules):
        (tmp_path / f"example_{number}.py").write_text(module)
    code = "\n".join(f"import example_{number}" for number in range(len(modules)))
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("repo_url", [None, "https://example.org/x/"])
def test_links_of_the_site(
    repo_url: str | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies outside docs/ is a link to the repository where that has an address; what isn't there is a warning."""
    pytest.importorskip("mkdocs")
    monkeypatch.syspath_prepend(str(DOCS / "hooks"))
    hook = importlib.import_module("links")
    text = "[`x`](../README.md#a) [y](training.md#packs) [z](../none.md) [w](https://example.org)\n```\n[v](../u.md)\n```\n"
    with caplog.at_level("WARNING", logger="mkdocs"):
        made = hook.site_links(text, DOCS / "cluster.md", DOCS / "cluster.md", repo_url)
    readme, none = (
        ("`x`", "z")
        if repo_url is None
        else ("[`x`](https://example.org/x/blob/main/README.md#a)", "[z](https://example.org/x/blob/main/none.md)")
    )
    assert made == f"{readme} [y](training.md#packs) {none} [w](https://example.org)\n```\n[v](../u.md)\n```\n"
    assert [record.getMessage() for record in caplog.records] == [
        "links: docs/cluster.md: the link to ../none.md leads nowhere"
    ]
    guide = hook.site_links("[a](docs/training.md#packs)", GUIDE, DOCS / "contributing.md", repo_url)
    assert guide == "[a](training.md#packs)"
