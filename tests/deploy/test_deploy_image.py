"""The image: its Dockerfile is executed below a folder, and what it makes serves as its user."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest
import yaml
from feed import Feed
from machine import needs_root
from sandbox import ROOT, Sandbox, Stage, instructions
from test_prometheus import answers, eventually

from snc_service.settings import Settings

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"


@contextmanager
def running(sandbox: Sandbox, stage: Stage, **env: str) -> Iterator[str]:
    """Run the image; yield the URL once it is ready. Afterwards it has ended cleanly."""
    process = sandbox.start(stage, **env)
    url = f"http://127.0.0.1:{sandbox.port}"
    try:
        eventually(lambda: process.poll() is not None or answers(f"{url}/readyz"))
        assert process.poll() is None, process.communicate()
        # It is the image's user that runs: all four of its ids.
        assert Path(f"/proc/{process.pid}/status").read_text().count("\t10001\t") >= 2
        yield url
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) in (0, -signal.SIGTERM)  # both are a clean end
    finally:
        process.kill()
        process.communicate()


def healthy(sandbox: Sandbox, stage: Stage) -> bool:
    command = [sandbox.moved(word) for word in stage.healthcheck]
    return subprocess.run(command, capture_output=True, timeout=30).returncode == 0


def written_outside(sandbox: Sandbox, since: float) -> list[str]:
    data = sandbox.root / "var" / "lib" / "snc"
    return [
        str(path)
        for path in sandbox.root.rglob("*")
        if path.lstat().st_mtime > since and data not in (path, *path.parents)
    ]


@needs_root
@pytest.mark.timeout(300)
def test_the_image_serves_as_an_unknown_user_and_writes_only_its_data(image):
    sandbox, stage = image
    assert not list((sandbox.root / "opt").rglob("site-packages/torch"))
    built = max(path.lstat().st_mtime for path in sandbox.root.rglob("*"))
    assert not healthy(sandbox, stage)
    with running(sandbox, stage, SNC_INSECURE="1") as url:
        assert healthy(sandbox, stage)
        Feed(url, "imaged", ["a"]).send([1, 2], sigma=1.5)
    assert (sandbox.root / "var/lib/snc/snc.db").stat().st_uid == 10001
    # What stands for a read-only root file system: nothing else was written, nor could it be.
    assert written_outside(sandbox, built) == []
    others = [p for p in sandbox.root.rglob("*") if p.lstat().st_uid == 10001]
    assert {p.relative_to(sandbox.root).parts[:3] for p in others} == {("var", "lib", "snc")}


def container_environment() -> dict[str, str]:
    """Return what the pod of deploy/kubernetes/replicas sets."""
    pod = yaml.safe_load((DEPLOY / "kubernetes/replicas/deployment.yaml").read_text())
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container["env"]}


@needs_root
@pytest.mark.timeout(300)
def test_the_image_serves_on_postgresql_as_a_pod_starts_it_and_writes_nothing(image, postgres):
    sandbox, stage = image
    env = container_environment()
    secret = Path(sandbox.moved(env["SNC_STORE_FILE"]))
    secret.parent.mkdir(parents=True, exist_ok=True)
    secret.write_text(postgres.new_url() + "\n")
    built = max(path.lstat().st_mtime for path in sandbox.root.rglob("*"))
    with running(sandbox, stage, **env | {"SNC_STORE_FILE": str(secret)}) as url:
        Feed(url, "pooled", ["a"]).send([1, 2], sigma=1.5)
        assert 'snc_sigma{run="pooled",layer="a"} 1.5' in httpx.get(f"{url}/metrics").text
    assert written_outside(sandbox, built) == []
    with running(sandbox, stage, **env | {"SNC_STORE_FILE": str(secret)}) as url:
        assert httpx.get(f"{url}/api/v1/runs/pooled").json()["last_step"] == 2


@needs_root
@pytest.mark.timeout(300)
def test_the_image_refuses_to_serve_strangers_unasked(image):
    sandbox, stage = image
    process = sandbox.start(stage, SNC_HOST="0.0.0.0", SNC_STORE=f"sqlite:///{sandbox.root}/x.db")
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode != 0
    assert len(said.strip().splitlines()) == 1, said


def test_everything_that_the_image_copies_reaches_the_builder():
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in lines if line.startswith("!")]
    assert lines[1] == "*"
    copied = {
        source
        for word, rest in instructions(DOCKERFILE.read_text())
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    }
    assert copied == set(allowed)
    assert all((ROOT / source).exists() for source in copied)
    assert not any(fnmatch(".git", pattern) for pattern in allowed)


def test_the_image_holds_what_the_project_declares():
    words = dict(instructions(DOCKERFILE.read_text()))  # the last of each
    assert words["EXPOSE"] == str(Settings().port)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", words["USER"])
    assert "SNC_INSECURE" not in DOCKERFILE.read_text()
