"""docs/metrics.md lists what is exposed: every family, its type, its labels and its help."""

import re

import pytest
from pages import DOCS

from snc_service.exposition import FAMILIES
from snc_service.exposition import exposition as lifetimes

TEXT = (DOCS / "metrics.md").read_text()


def listed(part: str) -> list[tuple[str, str, tuple[str, ...], str]]:
    heading = {"layers": "Layers", "runs": "Runs", "process": "The service itself"}[part]
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|(.*?)\| (.*) \|$", section, re.MULTILINE)
    return [(name, kind, tuple(re.findall(r"`(\w+)`", labels)), text)
            for name, kind, labels, text in rows]  # fmt: skip


@pytest.mark.parametrize("part", ["layers", "runs", "process"])
def test_the_page_lists_every_family_as_it_is(part):
    assert listed(part) == [
        (family.name, family.type, family.labels, family.help)
        for family in FAMILIES
        if family.part == part
    ]


def test_the_page_tells_the_right_lifetimes():
    assert f"leave {lifetimes.CLOSED_SECONDS / 60:g} minutes after" in TEXT.replace("\n", " ")
    assert f"and {lifetimes.SILENT_LAYERS_SECONDS / 60:g} after it fell silent" in TEXT
    assert lifetimes.SILENT_RUN_SECONDS == 86_400
    assert "a day after it fell silent" in TEXT


def test_what_the_page_names_exists():
    for path in re.findall(r"deploy/[\w./-]*\w", TEXT):
        assert (DOCS.parent / path).exists(), path
