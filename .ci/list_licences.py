"""List the licences of everything that an installation with all extras of the service brings.

    python .ci/list_licences.py >docs/licences.md

What is required comes from pyproject.toml and, from package to package, from the metadata of what
is installed here; so do the licences. Requirements of another Python or platform are left out. Exit
status 1: a licence is not among `PERMISSIVE` and `COPYLEFT`, or a package is not installed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

import tomllib
from packaging.requirements import Requirement

ROOT: Final = Path(__file__).resolve().parents[1]
RUNTIME_EXTRAS: Final = ("service", "postgres", "parquet", "plots")
PERMISSIVE: Final = frozenset({
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0",
    "PSF-2.0", "Zlib",
})  # fmt: skip
# Linked or imported as it is, unchanged: these ask nothing of a program that does so.
COPYLEFT: Final = {
    "certifi": frozenset({"MPL-2.0"}),
    "psycopg": frozenset({"LGPL-3.0-only"}),
    "psycopg-binary": frozenset({"LGPL-3.0-only"}),
    "shtab": frozenset({"MPL-2.0"}),
}
# As the metadata of released packages name them, beside the names of SPDX.
SPELLINGS: Final = {
    "MIT License": "MIT",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "GNU Lesser General Public License v3 (LGPLv3)": "LGPL-3.0-only",
}
HEAD: Final = """\
# Licences of the dependencies

What an installation with the extras `service`, `postgres`, `parquet` and `plots` brings, made by
`python .ci/list_licences.py >docs/licences.md` from the metadata of the packages. torch is the
job's own (BSD-3-Clause). Nothing of it is part of this repository or its wheel. Packages under
MPL-2.0 and LGPL-3.0 are imported unchanged.

| package | licence | required by |
|---|---|---|
"""


def required() -> dict[str, str]:
    """Return who requires each package, by its name; a package of this project counts as `snc`."""
    found: dict[str, str] = {}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    own = [*project["dependencies"], *(line for each in RUNTIME_EXTRAS for line in optional[each])]
    waiting = [(each, "snc") for each in _wanted(own, "")]
    asked: set[tuple[str, str]] = set()
    while waiting:
        requirement, by = waiting.pop(0)
        name = normalized(requirement.name)
        found.setdefault(name, by)
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) not in asked:
                asked.add((name, extra))
                lines = distribution(name).requires or ()
                waiting += [(each, name) for each in _wanted(lines, extra)]
    return found


def _wanted(lines: Iterable[str], extra: str) -> Iterator[Requirement]:
    """Yield what this machine needs for an extra, or without one."""
    for each in map(Requirement, lines):
        always = each.marker is None or each.marker.evaluate({"extra": ""})
        if always if not extra else not always and each.marker.evaluate({"extra": extra}):
            yield each


def normalized(name: str) -> str:
    """Return a name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licence(of: Distribution) -> str:
    """Return its licence: the expression, else the old field, else the classifiers."""
    metadata = of.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    named = (metadata.get("License") or "").strip()
    if named and "\n" not in named and len(named) < 60:
        return SPELLINGS.get(named, named)
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License :: OSI Approved :: ")
    ]
    return " AND ".join(SPELLINGS.get(each, each) for each in classifiers) or "unknown"


def allowed(name: str, expression: str) -> bool:
    """Return whether every part of the expression may be depended on; of an OR one is enough."""
    accepted = PERMISSIVE | COPYLEFT.get(name, frozenset())
    choices = [choice.split(" AND ") for choice in expression.split(" OR ")]
    return any(all(part.strip("() ") in accepted for part in choice) for choice in choices)


def table() -> list[tuple[str, str, str]]:
    """Return (package, licence, required by), sorted by package."""
    return [(name, licence(distribution(name)), by) for name, by in sorted(required().items())]


def main() -> int:
    """Print the page; return the exit status."""
    try:
        rows = table()
    except PackageNotFoundError as error:
        print(f"every package must be installed, {error.name} is not: make test", file=sys.stderr)
        return 1
    sys.stdout.write(HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows))
    bad = [f"{name}: {named}" for name, named, _ in rows if not allowed(name, named)]
    if bad:
        print(f"licences must be permissive, got {'; '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
