"""ARCHITECTURE.md and docs/decisions agree with the code.

The walk of one sigma is a table whose rows have five cells::

    | 7 | `snc_client/estimator/block_power.py` | `BlockPower.step_` | `Stepped` | One sentence. |

These are the number of the stop, the file from its package on, the qualified name of the
function, the carrier (a name in backticks, a word, or ``-`` where there is no value yet), and what
happens. `walk` returns the rows, so that a test can follow a real sigma through them.
"""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
PACKAGES = {"snc_client": ROOT / "client" / "snc_client", "snc_service": ROOT / "snc_service"}
MAX_STOPS, MAX_CARRIERS = 40, 6
DECISIONS = ROOT / "docs" / "decisions"

_STOP = re.compile(r"^\| (\d+) \| `([\w/.]+)` \| `([\w.]+)` \| (`\w+`|\w+|-) \| (.+) \|$", re.M)


class Stop(NamedTuple):
    """One row of the walk; ``path`` is absolute, ``carrier`` is None where there is no value."""

    number: int
    path: Path
    function: str
    carrier: str | None
    sentence: str


def located(name: str) -> Path:
    """Return the path of a file or folder that the page names from its package on."""
    package, _, rest = name.partition("/")
    return PACKAGES[package] / rest


def section(title: str) -> str:
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def walk() -> list[Stop]:
    """Return the stops of the walk in the order of the page."""
    return [
        Stop(int(number), located(file), function, None if carrier == "-" else carrier, sentence)
        for number, file, function, carrier, sentence in _STOP.findall(
            section("The walk of one sigma")
        )
    ]


def defined(path: Path) -> set[str]:
    """Return the qualified names of the functions and methods that a file defines."""
    found: set[str] = set()

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef):
                visit(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + child.name)

    visit(ast.parse(path.read_text()), "")
    return found


def test_every_row_of_the_walk_is_read_and_the_numbers_count_up():
    table = re.findall(r"^\| \d.*$", section("The walk of one sigma"), re.MULTILINE)
    assert len(walk()) == len(table) > 20
    assert [stop.number for stop in walk()] == list(range(1, len(table) + 1))


def test_the_walk_has_few_stops_and_few_carriers():
    assert len(walk()) <= MAX_STOPS
    assert len({stop.carrier for stop in walk()} - {None}) <= MAX_CARRIERS


@pytest.mark.parametrize("stop", walk(), ids=lambda stop: f"{stop.number}-{stop.function}")
def test_a_stop_of_the_walk_exists(stop):
    assert stop.path.is_file()
    assert stop.function in defined(stop.path)


def test_each_stop_is_listed_once():
    stops = [(stop.path, stop.function) for stop in walk()]
    assert len(stops) == len(set(stops))


def rooms() -> set[str]:
    return set(re.findall(r"^\| `(snc_[\w/]+)` \|", section("Rooms"), re.MULTILINE))


def folders() -> set[str]:
    """Return the folders of both packages that hold files, from the package on."""
    return {
        path.relative_to(top.parent).as_posix()
        for top in PACKAGES.values()
        for path in (top, *top.rglob("*"))
        if path.is_dir() and any(f.suffix in (".py", ".js") for f in path.iterdir())
    }


def test_every_folder_of_both_packages_is_a_room_of_the_page():
    assert rooms() == folders()


def test_every_module_beside_the_folders_is_listed():
    listed = set(re.findall(r"^\| `(\w+\.py)` \|", section("Rooms"), re.MULTILINE))
    alone = {path.name for top in PACKAGES.values() for path in top.glob("*.py")}
    assert listed <= alone
    assert alone - listed == {"__init__.py", "app.py", "settings.py"}


def room_of(module: str) -> str:
    """Return the room of a dotted module, as the table names it."""
    package, *parts = module.split(".")
    path = top = PACKAGES[package]
    for part in parts:
        if (path / part).is_dir():
            path = path / part
        elif path == top and (top / f"{part}.py").exists():
            return f"{part}.py"
    return path.relative_to(top.parent).as_posix()


def imported(path: Path) -> set[str]:
    """Return the rooms that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {room_of(name) for name in found if name.startswith("snc_")}


def test_a_room_imports_only_what_the_page_lists():
    rows = re.findall(r"^\| `([\w/.]+)` \| .+ \| (.+) \|$", section("Rooms"), re.MULTILINE)
    may = {room: re.findall(r"`([\w/.*]+)`", cell) for room, cell in rows}
    for package, top in PACKAGES.items():
        for path in sorted(top.rglob("*.py")):
            dotted = ".".join([package, *path.relative_to(top).with_suffix("").parts])
            room = room_of(dotted.removesuffix(".__init__"))
            if room not in may or room == package:  # what joins the parts imports them all
                continue
            for other in imported(path) - {room, "snc_client", "snc_service"}:
                name = other.partition("/")[2] if other.startswith("snc_") else other
                assert any(fnmatchcase(name, each) for each in may[room]), (path, other)


def test_the_index_lists_every_decision_under_its_title():
    index = dict(re.findall(r"\]\((\d{4}-[\w-]+\.md)\) \| (.+) \|$", text_of("README.md"), re.M))
    pages = {path.name for path in DECISIONS.glob("[0-9]*.md")}
    assert set(index) == pages
    for name, title in index.items():
        assert text_of(name).startswith(f"# {name[:4]}. {title}\n")


def text_of(name: str) -> str:
    return (DECISIONS / name).read_text()


@pytest.mark.parametrize("path", sorted(DECISIONS.glob("[0-9]*.md")), ids=lambda path: path.stem)
def test_a_decision_has_context_decision_and_consequence(path):
    headings = re.findall(r"^## (.+)$", path.read_text(), re.MULTILINE)
    assert headings == ["Context", "Decision", "Consequence"]


def test_files_that_decisions_name_exist():
    for path in DECISIONS.glob("*.md"):
        for name in re.findall(r"`((?:api|store|ui)/[\w/]+\.\w+)`", path.read_text()):
            assert (PACKAGES["snc_service"] / name).exists(), (path.name, name)
