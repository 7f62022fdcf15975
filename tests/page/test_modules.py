"""The page's modules that need no document: their tests, by Node, and what they may import."""

import json
import random
import re
import shutil
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STRICT = [ROOT / name for name in json.loads((ROOT / "tsconfig.strict.json").read_text())["files"]]
TESTS = sorted((HERE / "modules").glob("*.test.mjs"))
needs_node = pytest.mark.skipif(
    shutil.which("node") is None, reason="needs Node: apt-get install nodejs"
)


def node(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(
        ["node", *arguments], cwd=ROOT, input=text, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_node
def test_the_modules_without_a_document_pass_their_own_tests():
    passed = re.search(r"^\S+ pass (\d+)$", node("--test", *map(str, TESTS)), re.MULTILINE)
    written = sum(path.read_text().count("\ntest(") for path in TESTS)
    assert passed
    assert int(passed[1]) == written, "every test of the files has run"


def test_each_strictly_typed_module_has_tests():
    tested = {path.name.removesuffix(".test.mjs") for path in TESTS}
    assert {path.stem for path in STRICT} <= tested


@pytest.mark.parametrize("path", STRICT, ids=lambda path: path.stem)
def test_a_strictly_typed_module_imports_only_such_modules(path):
    for name in re.findall(r'from "(.+)"', path.read_text()):
        assert (path.parent / name).resolve() in STRICT, name


GLOBS = """
import { readFileSync } from "node:fs";
import { globToRegExp } from "./snc_service/ui/static/document/glob.js";
const told = ([pattern, name]) => {
  try { return globToRegExp(pattern).test(name); } catch { return false; }
};
console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(told)));
"""


@needs_node
def test_globs_on_the_page_match_as_those_of_the_policy():
    draw = random.Random(0)
    letters = "ab1-^\\|.&~(){}+$é"
    cases = []
    while len(cases) < 20_000:
        pattern = "".join(draw.choices(letters + "***??[[[]]]!!", k=draw.randrange(9)))
        name = "".join(draw.choices(letters + "[]!", k=draw.randrange(6)))
        # fnmatch takes a ! for a negation if a range that it leaves out stands before it.
        if not re.search("-.!", pattern):
            cases.append((pattern, name))
    expected = [fnmatchcase(name, pattern) for pattern, name in cases]
    assert 500 < sum(expected) < 19_500, "the cases tell right from wrong"
    told = json.loads(node("--input-type=module", "--eval", GLOBS, text=json.dumps(cases)))
    wrong = [
        (*case, want) for case, want, got in zip(cases, expected, told, strict=True) if want != got
    ]
    assert not wrong, wrong[:10]
