"""What the stand-in runs, from PyPI: Transformer Engine's Python, and Triton, in whose interpreter its kernels run."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.fetched_packages import fetch_package


def triton() -> Path:
    """A folder for PYTHONPATH."""
    return fetch_package("triton", "3.5.1")


def packages() -> list[Path]:
    """Folders for `install`; neither is installed: Transformer Engine without its extension can't be imported."""
    return [fetch_package("transformer-engine", "2.20.2"), triton()]
