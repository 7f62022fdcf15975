"""Files are small, folders hold few of them, and a class name means one thing in both packages."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from snc_service.wire import METRIC_NAME, RUN_NAME

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (ROOT / "snc_service", ROOT / "client" / "snc_client")
MAX_LINES, MAX_FILES = 400, 14
# Class names that stand more than once, with the reason.
SHARED = {
    "Skipped": "tensors that are not measured: `snc audit` lists those of a file, and `Coverage`, "
    "which is public, those of a model",
}


def sources(*suffixes: str) -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted(package.rglob("*")):
            if path.suffix in suffixes:
                yield path


def classes() -> dict[str, list[str]]:
    """Return where each class is defined, by its name without leading underscores."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sources(".py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                found[node.name.lstrip("_")].append(place)
    return found


def test_a_class_name_is_defined_once():
    repeated = {name: places for name, places in classes().items() if len(places) > 1}
    assert {name: repeated[name] for name in repeated.keys() - SHARED.keys()} == {}


@pytest.mark.parametrize("name", SHARED)
def test_an_exception_for_a_class_name_is_needed(name):
    assert len(classes()[name]) > 1


def test_a_file_has_at_most_400_lines():
    lengths = {path: len(path.read_text().splitlines()) for path in sources(".py", ".js", ".css")}
    assert len(lengths) > 300  # both packages were found
    assert {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_LINES} == {}


def test_a_folder_holds_at_most_14_source_files():
    files: dict[Path, int] = defaultdict(int)
    for path in sources(".py", ".js", ".css"):
        files[path.parent] += 1
    assert {str(p.relative_to(ROOT)): n for p, n in files.items() if n > MAX_FILES} == {}


@pytest.mark.parametrize("pattern", [RUN_NAME.pattern, METRIC_NAME.pattern])
def test_the_pattern_of_a_name_is_written_once(pattern):
    places = [str(p.relative_to(ROOT)) for p in sources(".py") if pattern in p.read_text()]
    assert places == ["snc_service/wire/checks.py"]
