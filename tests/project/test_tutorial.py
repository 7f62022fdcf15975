"""The tutorial is executed, cell by cell, against a real service."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
# What a kernel does: the value of an expression at the end of a cell is shown.
KERNEL = """
import json, sys
shown = []
names = {"__name__": "__main__"}
for number, (code, last) in enumerate(json.load(sys.stdin)):
    exec(compile(code, f"cell {number}", "exec"), names)
    if last is not None:
        value = eval(compile(last, f"cell {number}", "eval"), names)
        figure = getattr(value, "to_plotly_json", None)
        shown.append(sorted({t["type"] for t in figure()["data"]}) if figure else repr(value))
print(json.dumps(shown))
"""


def divided(source: str) -> tuple[str, str | None]:
    """Return the statements of a cell, and its last expression if it ends with one."""
    tree = ast.parse(source)
    if not isinstance(tree.body[-1], ast.Expr) or "print" in ast.unparse(tree.body[-1]):
        return source, None
    last = tree.body.pop()
    return ast.unparse(tree), ast.unparse(last)


def test_every_cell_runs_and_shows_what_its_text_says(service_url, tmp_path):
    pytest.importorskip("plotly")
    codes = [divided("".join(c["source"])) for c in CELLS if c["cell_type"] == "code"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", KERNEL],
        input=json.dumps(codes), capture_output=True, text=True, timeout=110, cwd=tmp_path,
        env={**os.environ, "SNC_URL": service_url, "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "of 2.weight:" in said
    assert "2.weight" in said.split("of 2.weight:")[1]  # in an event of the rules
    shown = json.loads(said.splitlines()[-1])
    figures = [each for each in shown if isinstance(each, list)]
    assert ["heatmap"] in figures
    assert len(figures) == 3
    held = next(ast.literal_eval(each) for each in shown if "tutorial-held" in each)
    assert held["tutorial-held"] < held["tutorial-observed"] / 3


def test_the_notebook_holds_no_outputs_and_no_counts():
    for cell in CELLS:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
