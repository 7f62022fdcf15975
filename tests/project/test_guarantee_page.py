"""Every statement of the guarantee names what carries it, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "guarantee.md").read_text()
STATEMENT = re.compile(r"^\*\*([A-E]'*)\. ", re.MULTILINE)


def test_every_statement_says_what_carries_it():
    statements = PAGE[: PAGE.index("## At which steps")]
    starts = [match.start() for match in STATEMENT.finditer(statements)]
    assert len(starts) >= 9
    for start, end in zip(starts, [*starts[1:], len(statements)], strict=True):
        assert "*Carried by:*" in statements[start:end], statements[start : start + 60]


def test_the_tests_and_logs_that_it_names_exist():
    named = re.findall(r"`([a-z_]+/test_\w+): (test_\w+)`", PAGE)
    assert len(named) > 20
    for file, test in named:
        assert f"\ndef {test}(" in (ROOT / "tests" / f"{file}.py").read_text(), test
    logs = re.findall(r"`(bench/results/[\w.-]+)`", PAGE)
    assert len(logs) >= 4
    assert all((ROOT / log).is_file() for log in logs)
