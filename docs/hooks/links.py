"""MkDocs hook: links that lead out of docs/, the page made from CONTRIBUTING.md, and `|` in tables.

Links between files of the repository are written as they work in a clone and on its host: `../examples/cluster.yaml`. On the site
they lead to the repository where mkdocs.yml has a `repo_url`, and are plain text where it has none. One that leads nowhere is a
warning, with which `mkdocs build --strict` fails.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.plugins import get_plugin_logger

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent.parent
ROOT = DOCS.parent
# Pages that are another file of the repository: the file in docs/ only points to it, for readers of a clone.
OTHER_FILES = {"contributing.md": ROOT / "CONTRIBUTING.md"}
# A fenced block, which is left alone, or a link to a place in the repository.
_FENCE_OR_LINK = re.compile(
    r"(?P<fence>^ *(?P<mark>```+).*?^ *(?P=mark) *$)|\[(?P<label>[^\]]*)\]\((?P<path>(?!\w+:)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)",
    re.MULTILINE | re.DOTALL,
)
# In a table's cell Markdown writes | as \|; Python-Markdown leaves the backslash in code.
_CELL = re.compile(r"<td.*?</td>", re.DOTALL)
_log = get_plugin_logger("links")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page as the site has it."""
    source = OTHER_FILES.get(page.file.src_uri, DOCS / page.file.src_uri)
    if page.file.src_uri in OTHER_FILES:
        markdown = source.read_text(encoding="utf-8")
    return site_links(markdown, source, DOCS / page.file.src_uri, config.repo_url)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page's HTML, with `|` in the code of tables."""
    return _CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)


def site_links(markdown: str, source: Path, page: Path, repo_url: str | None) -> str:
    """`markdown` of the file `source` with its links as they are right on the site, where it is `page`."""

    def rewritten(match: re.Match[str]) -> str:
        if match["fence"]:
            return match[0]
        target = Path(os.path.normpath(source.parent / match["path"]))
        if target.is_relative_to(DOCS):  # MkDocs checks these itself
            return f"[{match['label']}]({os.path.relpath(target, page.parent)}{match['anchor'] or ''})"
        if not (target.is_relative_to(ROOT) and target.exists()):
            _log.warning("%s: the link to %s leads nowhere", os.path.relpath(source, ROOT), match["path"])
        if not repo_url:
            return str(match["label"])
        return f"[{match['label']}]({repo_url.rstrip('/')}/blob/main/{os.path.relpath(target, ROOT)}{match['anchor'] or ''})"

    return _FENCE_OR_LINK.sub(rewritten, markdown)
