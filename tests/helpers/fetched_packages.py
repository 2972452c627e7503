"""Packages from PyPI that tests compare with, fetched once into .cache and not installed: they need much that we don't."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cache import cached_folder


def fetch_package(name: str, version: str) -> Path:
    """The folder that holds a package's modules."""

    def fetch(temporary: Path) -> Path:
        target = temporary / "modules"
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", target)
        done = subprocess.run([*pip, f"{name}=={version}"], capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.fail(f"{name} can't be fetched: {done.stderr}")
        return target

    return cached_folder(f"{name}-{version}", fetch)
