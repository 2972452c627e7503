"""axe-core, which looks for what keeps people from using a page: contrast, names, the keyboard."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.helpers.browser import Page
from tests.helpers.cache import cached_folder

VERSION = "4.14.1"
_RUN = "const done = arguments[arguments.length - 1]; axe.run().then(found => done(JSON.stringify(found.violations)));"


def violations(page: Page) -> list[str]:
    """A line for each element of the page that breaks a rule of WCAG or of good practice."""
    source = cached_folder(f"axe-core-{VERSION}", _fetch) / "axe.min.js"
    page.driver.execute_script(source.read_text())
    found: list[dict[str, Any]] = json.loads(page.driver.execute_async_script(_RUN))
    return [f"{rule['id']}: {node['html'][:120]}" for rule in found for node in rule["nodes"]]


def _fetch(temporary: Path) -> Path:
    command = ["npm", "pack", f"axe-core@{VERSION}", "--silent"]
    subprocess.run(command, cwd=temporary, check=True, capture_output=True, timeout=300)
    subprocess.run(["tar", "xzf", next(temporary.glob("*.tgz")).name], cwd=temporary, check=True)
    return temporary / "package"
