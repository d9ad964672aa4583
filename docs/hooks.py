"""MkDocs hook: warns of names in a page for which nothing exists; --strict makes them errors."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from docs.references import mistakes_in_file, mistakes_in_messages, mistakes_in_page  # noqa: E402

log = logging.getLogger("mkdocs.hooks.references")
TROUBLESHOOTING = "troubleshooting.md"  # its headings quote error messages
# Markdown outside of the site that also names fields, files and commands.
OTHERS = ("README.md", "CONTRIBUTING.md", "infra/README.md", "infra/iam/README.md",
          "infra/monitoring/README.md")  # fmt: skip


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Check a page of the site."""
    mistakes = mistakes_in_page(markdown)
    if page.file.src_uri == TROUBLESHOOTING:
        mistakes += mistakes_in_messages(markdown)
    for mistake in mistakes:
        log.warning("docs/%s, %s", page.file.src_uri, mistake)
    return markdown


def on_pre_build(**_: Any) -> None:
    """Check the pages outside of the site."""
    for name in OTHERS:
        for mistake in mistakes_in_file(ROOT / name):
            log.warning("%s, %s", name, mistake)
