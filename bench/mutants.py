"""Change one expression at a time, and say which changes the tests do not notice.

    OMP_NUM_THREADS=1 python bench/mutants.py [--only TEXT] [--again LOG] [--check]

The changes are in mutants/*.toml, made by hand: each is a mistake that somebody could make, as
[old text, new text] or, where no test can notice, [old text, new text, why not]. Each is made
alone, in a copy of the tracked files; the test files of its module run until the first one fails.
The old text must occur exactly once in its file: a table that no longer fits the code is an error,
and `--check` looks for that only. All tests first run on the unchanged copy, and must pass.
Needs Python 3.11.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parent.parent
TABLES = Path(__file__).resolve().with_suffix("")
VERDICTS = ("killed", "timeout", "equivalent", "SURVIVED", "NOT EQUIVALENT")


@dataclass(frozen=True)
class Mutant:
    old: str
    new: str
    equivalent: str = ""  # why no test can notice it

    def __str__(self) -> str:
        return "  ->  ".join(" ".join(text.split()) or "(nothing)" for text in (self.old, self.new))


@dataclass(frozen=True)
class Module:
    file: str
    tests: tuple[str, ...]
    mutants: tuple[Mutant, ...]


def modules() -> list[Module]:
    """Read the tables."""
    found = []
    for table in sorted(TABLES.glob("*.toml")):
        for each in tomllib.loads(table.read_text())["module"]:
            mutants = tuple(Mutant(*change) for change in each["mutants"])
            found.append(Module(each["file"], tuple(each["tests"]), mutants))
    return found


class Checkout:
    """A copy of the tracked files, in which tests run against one changed file."""

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder = folder
        self.limit = limit
        names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
        for name in names.split("\0"):
            if name and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        places = (str(folder), str(folder / "client"))
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
        self._environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled once, not per mutant
        self._written = 0
        code = "import snc_service, snc_client; print(snc_service.__file__, snc_client.__file__)"
        found = subprocess.check_output(
            [sys.executable, "-c", code], cwd=folder, env=self._environment, text=True
        )
        if any(not Path(each).is_relative_to(folder) for each in found.split()):
            raise SystemExit(f"the copy is not what Python imports: {found}")

    def test(self, tests: Sequence[str], limit: float | None = None) -> tuple[str, str]:
        """Run test files until one fails: "passed", "failed" or "timeout", and the last lines."""
        shutil.rmtree(self.folder / ".hypothesis", ignore_errors=True)
        options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
        # One engine is enough: the statements are the same, and the arithmetic is in Python.
        command = [sys.executable, "-m", "pytest", *options, "-k", "not postgres", *tests]
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=self._environment,
                timeout=limit or self.limit,
                capture_output=True,
                text=True,
            )
        except subprocess.TimeoutExpired:
            return "timeout", ""
        if done.returncode not in (0, 1, 2):  # 2: a file that cannot even be imported
            raise SystemExit(f"pytest ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return ("failed" if done.returncode else "passed"), done.stdout[-2_000:]

    def try_out(self, module: Module, mutant: Mutant) -> str:
        """Return the verdict on one mutant; the file is as before afterwards."""
        path = self.folder / module.file
        before = path.read_text()
        self._write(path, before.replace(mutant.old, mutant.new))
        try:
            outcome, _ = self.test(module.tests)
        finally:
            self._write(path, before)
        if mutant.equivalent:
            return "equivalent" if outcome == "passed" else "NOT EQUIVALENT"
        return {"passed": "SURVIVED", "failed": "killed", "timeout": "timeout"}[outcome]

    def _write(self, path: Path, text: str) -> None:
        """Write a file with a time of its own: else Python may run the bytecode of another text."""
        path.write_text(text)
        self._written += 1
        os.utime(path, (self._written, self._written))


def misfits(listed: Sequence[Module]) -> list[str]:
    """Return what in the tables does not fit the code."""
    found = []
    for module in listed:
        text = (ROOT / module.file).read_text()
        for mutant in module.mutants:
            count = text.count(mutant.old)
            if count != 1:
                found.append(f"{module.file}: occurs {count} times, must once: {mutant.old!r}")
        missing = [name for name in module.tests if not (ROOT / name).is_file()]
        found += [f"{name}: no such file" for name in missing]
    return found


def report(checkout: Checkout, module: Module) -> Counter[str]:
    """Try the mutants of a module and print a line for each."""
    counts: Counter[str] = Counter()
    print(module.file, flush=True)
    for mutant in module.mutants:
        start = time.perf_counter()
        verdict = checkout.try_out(module, mutant)
        counts[verdict] += 1
        seconds = time.perf_counter() - start
        print(f"  {verdict:10} {seconds:4.0f} s  {mutant}", flush=True)
        if mutant.equivalent:
            print(f"{'':21}{mutant.equivalent}", flush=True)
    return counts


def survivors(listed: Sequence[Module], log: Path) -> list[Module]:
    """Return the modules with those mutants only that survived in the log of another run."""
    lines = {line.strip() for line in log.read_text().splitlines()}
    alive = {line.partition(" s  ")[2] for line in lines if line.startswith("SURVIVED")}
    left = [
        replace(module, mutants=tuple(each for each in module.mutants if str(each) in alive))
        for module in listed
    ]
    return [module for module in left if module.mutants]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="modules whose path contains this text")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds per mutant (120)")
    parser.add_argument("--again", type=Path, help="only what survived in the log of another run")
    parser.add_argument("--check", action="store_true", help="compare the table with the code only")
    options = parser.parse_args()
    listed = [module for module in modules() if options.only in module.file]
    if wrong := misfits(listed):
        print(*wrong, sep="\n", file=sys.stderr)
        return 2
    if options.check:
        print(f"{sum(len(module.mutants) for module in listed)} mutants fit the code")
        return 0
    if options.again:
        listed = survivors(listed, options.again)
    print(f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}")
    totals: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkout = Checkout(Path(folder).resolve(), options.limit)
        files = sorted({name for module in listed for name in module.tests})
        outcome, tail = checkout.test(files, limit=options.limit * len(files))
        if outcome != "passed":
            raise SystemExit(f"the tests do not pass unchanged ({outcome}):\n{tail}")
        for module in listed:
            totals.setdefault(module.file, Counter()).update(report(checkout, module))
    print(f"\n{'module':55}" + "".join(f"{verdict:>16}" for verdict in VERDICTS))
    whole = sum(totals.values(), Counter[str]())
    for name, counts in [*totals.items(), ("all", whole)]:
        print(f"{name:55}" + "".join(f"{counts[verdict]:16}" for verdict in VERDICTS))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"CPU of the tests: {(used.ru_utime + used.ru_stime) / 60:.1f} minutes")
    return 1 if whole["SURVIVED"] or whole["NOT EQUIVALENT"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
