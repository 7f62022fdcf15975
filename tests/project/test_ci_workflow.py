"""The CI workflow and the templates of GitHub are valid, and call what the Makefile has."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
JOB = yaml.safe_load((GITHUB / "workflows" / "ci.yml").read_text())["jobs"]["test"]


def test_ci_runs_the_oldest_supported_python_and_three_newer_ones():
    (oldest,) = re.findall(
        r'^requires-python = ">=([\d.]+)"$', (ROOT / "pyproject.toml").read_text(), re.M
    )
    assert JOB["strategy"]["matrix"]["python"] == [oldest, "3.11", "3.12", "3.13"]


def test_ci_calls_a_target_that_make_has():
    (command,) = [step["run"] for step in JOB["steps"] if "run" in step]
    assert command == "make test PYTHON=python3"
    done = subprocess.run(
        [*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "pytest" in done.stdout


@pytest.mark.parametrize("path", sorted(GITHUB.glob("ISSUE_TEMPLATE/*.yml")), ids=lambda p: p.stem)
def test_an_issue_template_has_what_github_requires(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert {"name", "description", "body"} <= set(form)
    asked = [part for part in form["body"] if part["type"] != "markdown"]
    assert asked
    assert all(part["id"] and part["attributes"]["label"] for part in asked)
