"""What the site of mkdocs.yml has beside this folder: the README is its first page, and the project's other pages.

mkdocs calls on_files and on_page_markdown. On GitHub the pages link each other by their places in the repository; here
those links are turned into the site's.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {
    "README.md": "index.md",
    "README.zh.md": "index.zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for source, place in PAGES.items():
        files.append(File.generated(config, place, content=_with_links(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    source = page.file.abs_src_path
    return markdown if source is None or page.file.src_uri in PAGES.values() else _with_links(Path(source))


def _with_links(path: Path) -> str:
    """The page with its links as links to pages of the site; a file that is no page is named without one."""

    def turned(found: re.Match[str]) -> str:
        text, link, anchor = found.groups(default="")
        if ":" in link:
            return found[0]
        target = (path.parent / link).resolve()
        if not target.exists():
            raise FileNotFoundError(f"{path.name} links to {link}, which is not there")
        place = target.relative_to(ROOT).as_posix()
        if place not in PAGES and not place.startswith("docs/"):
            return text
        here = path.parent.relative_to(DOCS) if path.is_relative_to(DOCS) else Path()
        shown = os.path.relpath(PAGES.get(place, place.removeprefix("docs/")), here)
        return f"[{text}]({shown}{anchor})"

    return _LINK.sub(turned, path.read_text(encoding="utf-8"))
