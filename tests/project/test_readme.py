"""Every command and code block of README.md is executed against a real service."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from recorded_files import WANDB

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = [
    (match[1], match[2])
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
]


def blocks(language: str) -> list[str]:
    return [text for name, text in BLOCKS if name == language]


def test_every_block_is_of_a_kind_that_is_executed_here():
    assert {name for name, _ in BLOCKS} == {"python", "sh", "yaml"}


@pytest.mark.parametrize("code", blocks("python"))
def test_a_python_block_runs_and_its_run_arrives(code, service_url):
    if "Api()" in code:
        post_one_run(service_url)
        code = code.replace("RUN", "readme")
    code = code.replace("http://127.0.0.1:8470", service_url)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "SNC_URL": service_url},
    )
    assert done.returncode == 0, done.stderr
    assert len(httpx.get(f"{service_url}/api/v1/runs").json()["items"]) == 1


def commands() -> list[str]:
    joined = "".join(blocks("sh")).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip()]


@pytest.mark.parametrize("command", [c for c in commands() if c.startswith(("curl", "snc"))])
def test_a_command_against_the_service_succeeds(command, service_url):
    if command == "snc serve":
        assert httpx.get(f"{service_url}/healthz").status_code == 200  # this is its process
        return
    post_one_run(service_url)
    binary = str(Path(sys.executable).parent / "snc")
    command = command.replace("http://127.0.0.1:8470", service_url).replace("RUN", "readme")
    command = command.replace("wandb/", str(WANDB))
    command = re.sub(r"^snc", binary, command).replace("curl", "curl --fail-with-body -sS", 1)
    done = subprocess.run(
        command,
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={"SNC_URL": service_url, "PATH": "/usr/local/bin:/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = ("readme", "entries", "0.weight", "imported")
    assert any(word in done.stdout for word in expected)


def post_one_run(url: str) -> None:
    httpx.post(f"{url}/api/v1/runs", json={"run": "readme"}).raise_for_status()
    batch = {
        "writer": "w",
        "seq": 0,
        "steps": [1, 2],
        "layers": ["0.weight"],
        "metrics": {"sigma": [[1.0], [1.5]], "threshold": [[2.0], [2.0]]},
    }
    httpx.post(f"{url}/api/v1/runs/readme/batches", json=batch).raise_for_status()


@pytest.mark.timeout(180)
def test_make_demo_ends_well():
    assert "make demo" in commands()
    done = subprocess.run(
        ["make", "demo", "ARGS=--exit --steps 30"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "loss at the end" in done.stdout


def test_other_commands_are_the_ones_that_other_tests_run():
    known = {"make demo", "make test", "pip install '.[service]'"}  # see test_imports.py
    others = {c for c in commands() if not c.startswith(("curl", "snc"))}
    assert others <= known


@pytest.mark.parametrize("block", blocks("yaml"))
def test_the_scrape_snippet_is_a_valid_prometheus_configuration(block, tmp_path):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing: install the Debian package prometheus")
    path = tmp_path / "prometheus.yml"
    path.write_text(block)
    done = subprocess.run([promtool, "check", "config", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
