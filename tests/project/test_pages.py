"""Pages of the repository: links lead somewhere, and the install commands name this project."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub forms them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_every_link_within_the_repository_leads_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if link.startswith("https://"):
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text()), link


NAME_SCRIPTS = [
    *(path for path in PAGES if path.name != "CHANGELOG.md"),
    ROOT / "Makefile",
    *sorted((ROOT / "bench").rglob("*.py")),
]


@pytest.mark.parametrize("path", NAME_SCRIPTS, ids=named)
def test_a_benchmark_that_is_named_exists(path):
    for script in re.findall(r"\bbench/[\w/]+\.py", path.read_text()):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_no_page_installs_the_other_project_that_is_called_snc(path):
    assert not re.search(r"pip install '?snc\b", path.read_text())


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_the_columns_of_a_table_are_as_many_in_each_row(path):
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^\|[ -].*\n)+", text, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(counts) == 1, table
