"""Which cases of a parametrized test `make test` runs, and which only `make test-all`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def mostly_full(cases: Iterable[str], representative: Iterable[str]) -> list[Any]:
    """The cases by name; all but the representative ones are marked `full`. Raises KeyError for a name that is no case."""
    names = list(cases)
    kept = set(representative)
    if unknown := kept - set(names):
        raise KeyError(f"no such cases: {sorted(unknown)}")
    return [name if name in kept else pytest.param(name, marks=pytest.mark.full) for name in names]
