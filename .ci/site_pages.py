"""Pages of the documentation site that are not files in docs/: MkDocs calls this as its hook.

README.md is the front page; ARCHITECTURE.md and its siblings are pages; the glossary is the table
of terms of ARCHITECTURE.md; the notebook becomes a page of text and code. Links out of docs/ to one
of these lead to its page, other links out of docs/ become text. The site of a version is built into
site/VERSION, beside those of earlier ones.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
NOTEBOOK: Final = "tutorial.ipynb"
# A page of the site -> the file of the repository that it is made of.
PAGES: Final = {
    "index.md": "README.md",
    "architecture.md": "ARCHITECTURE.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
GLOSSARY: Final = "glossary.md"
TUTORIAL: Final = "tutorial.md"
_LINK: Final = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE: Final = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def version() -> str:
    """Return the version of the project."""
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None, "pyproject.toml has a version"
    return found[1]


def glossary() -> str:
    """Return the page of terms, out of ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text().split("\n## Terms\n")[1].split("\n## ")[0]
    return f"# Glossary\n\nOne term per thing, in code, JSON, SQL, Prometheus and here.\n\n{text}"


def notebook() -> str:
    """Return the tutorial as Markdown: its texts, its code in fences."""
    cells = json.loads((ROOT / "docs" / NOTEBOOK).read_text())["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        is_code = cell["cell_type"] == "code"
        parts.append(f"```python\n{source}\n```" if is_code else source)
    return "\n\n".join(parts) + f"\n\nThe notebook itself: [{NOTEBOOK}]({NOTEBOOK}).\n"


def led(text: str, folder: str) -> str:
    """Return a page of this folder of the repository with links that hold in the site."""
    pages = {file: page for page, file in PAGES.items()}

    def lead(match: re.Match[str]) -> str:
        mark, shown, link = match.groups()
        if "://" in link or link.startswith("#"):
            return match[0]
        file, sharp, anchor = link.partition("#")
        place = posixpath.normpath(posixpath.join(folder, file))
        here = "docs" if folder in ("", "docs") else folder
        if place in pages:
            target = posixpath.relpath(posixpath.join("docs", pages[place]), here)
        elif place.startswith("docs/"):
            target = posixpath.relpath(place, here)
        else:
            return shown
        return f"{mark}[{shown}]({target}{sharp}{anchor})"

    kept, at = [], 0
    for fence in _FENCE.finditer(text):
        kept += [_LINK.sub(lead, text[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*kept, _LINK.sub(lead, text[at:])])


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the version, and build into a folder of its own."""
    config.site_name = f"{config.site_name} {version()}"
    config.site_dir = str(Path(config.site_dir) / version())
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    from mkdocs.structure.files import File

    made = {page: (ROOT / file).read_text() for page, file in PAGES.items()}
    made |= {GLOSSARY: glossary(), TUTORIAL: notebook()}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Lead the links of a page."""
    is_made = page.file.src_uri in PAGES
    folder = "" if is_made else posixpath.dirname(f"docs/{page.file.src_uri}")
    return led(markdown, folder)


def on_post_build(*, config: MkDocsConfig) -> None:
    """List the versions for the selector of the theme, and open the newest by default."""
    top = Path(config.site_dir).parent
    found = sorted((path.parent.name for path in top.glob("*/index.html")), reverse=True)
    entries = [{"version": name, "title": name, "aliases": []} for name in found]
    (top / "versions.json").write_text(json.dumps(entries) + "\n")
    here = version()
    (top / "index.html").write_text(
        f'<!doctype html><meta charset="utf-8"><title>snc</title>'
        f'<meta http-equiv="refresh" content="0; url={here}/"><a href="{here}/">snc {here}</a>\n'
    )
