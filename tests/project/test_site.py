"""The documentation site: what its hook makes; its menu and its reference leave nothing out."""

import importlib.util
import re

import pytest
import yaml
from sandbox import ROOT

import snc_client


@pytest.fixture(scope="module")
def hook():
    specification = importlib.util.spec_from_file_location("site_pages", ROOT / ".ci/site_pages.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def menu() -> list[str]:
    found = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    return [page for part in found for pages in part.values() for page in pages]


def test_the_menu_has_every_page_once(hook):
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    pages |= {*hook.PAGES, hook.GLOSSARY, hook.TUTORIAL, "decisions/README.md"}
    assert sorted(menu()) == sorted(pages)


def test_the_reference_has_every_public_name(hook):
    listed = re.findall(r"^::: snc_client\.(\w+)$", (ROOT / "docs/reference.md").read_text(), re.M)
    assert sorted(listed) == sorted(snc_client.__all__)


def test_every_object_of_the_reference_is_there():
    for name in re.findall(r"^::: ([\w.]+)$", (ROOT / "docs/reference.md").read_text(), re.M):
        if ".integrations." in name:  # its framework is not installed here
            path, _, last = name.rpartition(".")
            file = ROOT / "client" / f"{path.replace('.', '/')}.py"
            assert re.search(rf"^(class|def) {last}\b", file.read_text(), re.M), name
            continue
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name


def test_the_glossary_has_the_terms_of_the_architecture(hook):
    page = hook.glossary()
    for term in ("sigma_upper", "recording", "batch", "policy, policy entry"):
        assert f"\n| {term} | " in page


def test_the_tutorial_page_has_the_code_of_the_notebook(hook):
    page = hook.notebook()
    assert page.startswith("# Tutorial")
    assert page.count("```python\n") >= 8
    assert 'observed = train("tutorial-observed")\n```' in page


@pytest.mark.parametrize(
    ("text", "folder", "expected"),
    [
        ("[a](docs/guard.md#x)", "", "[a](guard.md#x)"),
        ("![a](docs/page.png)", "", "![a](page.png)"),
        ("[a](ARCHITECTURE.md)", "", "[a](architecture.md)"),
        ("[log](bench/results)", "", "log"),
        ("[a](../CONTRIBUTING.md#deprecation)", "docs", "[a](contributing.md#deprecation)"),
        ("[a](../rules.md) [b](0002-x.md)", "docs/decisions", "[a](../rules.md) [b](0002-x.md)"),
        ("[a](../examples/minimal.py)", "docs", "a"),
        ("[a](https://example.org) [b](#c)", "docs", "[a](https://example.org) [b](#c)"),
        ("```\n[a](b/c.md)\n```\n[a](b/c.md)", "", "```\n[a](b/c.md)\n```\na"),
    ],
)
def test_links_lead_within_the_site(hook, text, folder, expected):
    assert hook.led(text, folder) == expected


def test_the_version_is_that_of_the_package(hook):
    import snc_service

    assert hook.version() == snc_service.__version__
