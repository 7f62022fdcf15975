"""The code blocks of a page of the docs."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def languages(page: str) -> set[str]:
    return set(re.findall(r"^```(\w+)$", (DOCS / page).read_text(), re.MULTILINE))


def commands(page: str) -> list[str]:
    joined = "".join(blocks(page, "sh")).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]
