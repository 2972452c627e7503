"""Packages from PyPI that tests compare with, fetched once into .cache and not installed: they need much that we don't."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CACHE


def fetch_package(name: str, version: str) -> Path:
    """The folder that holds a package's modules."""
    folder = CACHE / f"{name}-{version}"
    if not folder.is_dir():
        temporary = CACHE / f"{folder.name}.{os.getpid()}.tmp"
        temporary.mkdir(parents=True)
        pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", temporary)
        done = subprocess.run([*pip, f"{name}=={version}"], capture_output=True, text=True, timeout=300)
        if done.returncode:
            shutil.rmtree(temporary)
            pytest.fail(f"{name} can't be fetched: {done.stderr}")
        temporary.rename(folder)
    return folder
