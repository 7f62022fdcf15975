"""Licences of the dependencies: the page lists them all, and none asks for more than a notice."""

from __future__ import annotations

import importlib.util
import re

import pytest
from sandbox import ROOT

pytest.importorskip("tomllib", reason="Python 3.10 reads TOML with tomli")

SCRIPT = ROOT / ".ci" / "list_licences.py"


@pytest.fixture(scope="module")
def licences():
    specification = importlib.util.spec_from_file_location("list_licences", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def page() -> dict[str, str]:
    text = (ROOT / "docs" / "licences.md").read_text()
    return dict(re.findall(r"^\| ([\w.-]+) \| ([^|]+) \|", text, re.MULTILINE)[1:])


def test_the_page_allows_every_licence_that_it_lists(licences):
    listed = page()
    assert len(listed) >= 30
    assert [name for name, named in listed.items() if not licences.allowed(name, named)] == []


def test_every_package_that_is_required_here_is_listed_and_allowed(licences):
    """Another Python or platform may require fewer than the page lists, and no others."""
    listed = page()
    for name, named, _ in licences.table():
        assert name in listed, "python .ci/list_licences.py >docs/licences.md"
        assert licences.allowed(name, named), (name, named)


def test_what_the_project_names_is_what_is_walked(licences):
    required = licences.required()
    assert {"numpy", "httpx", "fastapi", "psycopg", "pyarrow", "plotly"} <= required.keys()
    assert required["httpcore"] == "snc"  # named by the project itself
    assert required["h11"] in ("httpcore", "uvicorn")
    assert not {"torch", "pytest", "hypothesis"} & required.keys()


@pytest.mark.parametrize(
    ("name", "expression", "verdict"),
    [
        ("a", "MIT", True),
        ("a", "Apache-2.0 AND MIT", True),
        ("a", "GPL-3.0-only OR MIT", True),
        ("a", "GPL-3.0-only AND MIT", False),
        ("a", "LGPL-3.0-only", False),
        ("psycopg", "LGPL-3.0-only", True),
        ("a", "unknown", False),
    ],
)
def test_one_permissive_choice_is_enough_and_every_part_must_be(
    licences, name, expression, verdict
):
    assert licences.allowed(name, expression) is verdict


def test_a_package_without_a_known_licence_is_refused_by_the_script(licences, capsys, monkeypatch):
    monkeypatch.setattr(licences, "licence", lambda of: "Proprietary")
    assert licences.main() == 1
    assert "must be permissive, got" in capsys.readouterr().err
