"""Which source code runs: the commit that manifests name, and the tree that is shipped to a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import write_json

# The folder that holds the packages: a checkout, a shipped tree, or site-packages.
ROOT = Path(__file__).resolve().parent.parent.parent
# In a shipped tree: what it was made from.
SHIPPED = "SHIPPED.json"


@cache
def source_of_this_code() -> dict[str, Any] | None:
    """`commit`, and the files `changed` since, of the code that runs; None where neither git nor a shipment says it."""
    if (ROOT / SHIPPED).is_file():
        shipped: dict[str, Any] = json.loads((ROOT / SHIPPED).read_text())
        return shipped
    try:
        source = Source.of(ROOT)
    except UserError:
        return None
    return None if source is None else source.facts


@dataclass(frozen=True)
class Source:
    """A git checkout as it is now.

    Attributes:
        changed: files that differ from the commit, new ones among them.
    """

    root: Path
    commit: str
    changed: tuple[str, ...]

    @classmethod
    def of(cls, root: Path, excluding: Sequence[Path] = ()) -> Source | None:
        """The checkout at `root`, its changes not counting the files `excluding`; None where there is none.

        Raises UserError where git can't read it.
        """
        if not (root / ".git").exists():
            return None
        try:
            commit = _git(root, "rev-parse", "HEAD").strip()
            status = _git(root, "status", "--porcelain", "--untracked-files=all", "-z", "--no-renames")
        except OSError as error:
            raise UserError(f"{root}: git, which says what is to be shipped, can't be run: {error}") from None
        except subprocess.CalledProcessError as error:
            raise UserError(f"{root}: git can't say what is to be shipped: {error.stderr.strip()}") from None
        # AD: added, and deleted before it was committed: a change of nothing.
        files = {entry[3:] for entry in status.split("\0") if entry and not entry.startswith("AD")}
        others = {os.path.relpath(path.resolve(), root) for path in excluding}
        return cls(root, commit, tuple(sorted(files - others)))

    @property
    def facts(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"commit": self.commit, "changed": list(self.changed)}

    def __str__(self) -> str:
        changes = f" with changes in {', '.join(self.changed)}" if self.changed else ""
        return f"commit {self.commit[:12]}{changes}"

    def check_committed(self) -> None:
        """Raises UserError where files differ from the commit."""
        if self.changed:
            shown = ", ".join(self.changed[:10]) + (", ..." if len(self.changed) > 10 else "")
            raise UserError(
                f"{self.root}: these differ from the commit that would be shipped: {shown}; commit them, or ship them as they "
                "are with --ship-changes"
            )

    def write(self, folder: Path) -> None:
        """The tree, with the changed files as they are now, into the new folder `folder`."""
        folder.mkdir(parents=True)
        try:
            archive = subprocess.Popen(["git", "archive", self._tree()], cwd=self.root, stdout=subprocess.PIPE)
            subprocess.run(["tar", "-x", "-C", str(folder)], stdin=archive.stdout, check=True)
            if archive.wait():
                raise subprocess.CalledProcessError(archive.returncode, "git archive")
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"{self.root}: the tree can't be shipped to {folder}: {error}") from None
        write_json(folder / SHIPPED, self.facts)

    def _tree(self) -> str:
        """Git's name of the tree to ship; changed files go through an index of their own, the user's is left alone."""
        if not self.changed:
            return self.commit
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "GIT_INDEX_FILE": f"{folder}/index"}
            _git(self.root, "read-tree", "HEAD", environment=environment)
            _git(self.root, "add", "--all", "--", *self.changed, environment=environment)
            return _git(self.root, "write-tree", environment=environment).strip()


def _git(root: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, env=environment)
    return done.stdout
