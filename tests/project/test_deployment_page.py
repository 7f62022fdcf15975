"""Every command of docs/deployment.md and docs/operations.md is executed, or parsed by its program.

Where a command would change the machine or needs an engine, its program still reads it: systemctl
works on a folder, kubectl and compose refuse a word that they do not know before they connect.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from feed import Feed
from machine import needs, needs_root
from pages import DOCS, blocks, commands, languages
from sandbox import ROOT, Sandbox
from test_deploy_compose import SERVICES
from test_prometheus import check

from snc_client.demo.service import free_port, serving
from snc_service.settings import Settings, variable
from snc_service.store import open_store

PAGES = ("deployment.md", "operations.md")
INSTALLS = re.compile(
    r"(python3 -m venv|\S+/pip install|useradd|install|rm -f|/opt/snc/bin/snc db|sh deploy/\S+\.sh"
    r"|promtool check config) "
)
ENGINES = re.compile(r"(systemctl|journalctl|docker compose|docker build|kubectl) ")
ASKS = re.compile(r"(snc|curl|export|/opt/snc/bin/snc serve --check) ?")
ELSEWHERE = ("nginx -t", "caddy validate --config /etc/caddy/Caddyfile")  # in test_proxies.py


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_of_a_kind_that_is_tested_here(page):
    assert languages(page) <= {"sh", "yaml"}
    for command in commands(page):
        kinds = [kind for kind in (INSTALLS, ENGINES, ASKS) if kind.match(command)]
        assert kinds or command in ELSEWHERE, command


# What is executed ---------------------------------------------------------------------------------


def adapted(command: str, sandbox: Sandbox) -> str:
    """Return a command that does the same to the sandbox as the original to the machine."""
    if command.startswith("useradd"):
        return f"useradd --prefix {sandbox.root} {command.removeprefix('useradd ')}"
    if command.startswith("install"):
        command = command.replace("-o snc -g snc", "-o 10001 -g 10001")
        target = Path(sandbox.moved(command.split()[-1]))
        (target if command.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
    return command


@pytest.fixture
def machine(image) -> Sandbox:
    sandbox, _ = image
    for name in ("passwd", "group"):
        (sandbox.root / "etc").mkdir(exist_ok=True)
        shutil.copy(f"/etc/{name}", sandbox.root / "etc")
    (sandbox.root / "var" / "backups").mkdir(parents=True, exist_ok=True)
    if not (sandbox.source() / "deploy").exists():
        shutil.copytree(ROOT / "deploy", sandbox.source() / "deploy")
    return sandbox


@needs_root
@pytest.mark.timeout(300)
def test_a_bare_machine_is_set_up_as_the_page_says(machine):
    for command in commands("deployment.md"):
        if command.startswith("promtool") and shutil.which("promtool") is None:
            continue
        if INSTALLS.match(command) and command not in machine.ran:  # by the image: it takes long
            machine.run(adapted(command, machine), cwd=machine.source())
    assert re.search(r"^snc:.*nologin$", (machine.root / "etc/passwd").read_text(), re.MULTILINE)
    said = machine.run("/opt/snc/bin/snc serve --check --store sqlite:////var/lib/snc/check.db")
    assert "port: free" in said
    checks = [c for c in commands("deployment.md") if c.startswith("/opt/snc/bin/snc serve")]
    assert checks
    for command in checks:
        machine.run(command)
    enabled = f"systemctl --root={machine.root} enable snc"
    if shutil.which("systemctl"):
        subprocess.run(shlex.split(enabled), check=True, capture_output=True)
        wants = machine.root / "etc/systemd/system/multi-user.target.wants/snc.service"
        assert wants.is_symlink()


@needs_root
@pytest.mark.timeout(300)
def test_a_backup_taken_while_serving_is_restored_as_the_page_says(machine):
    database = machine.root / "var/lib/snc/snc.db"
    for leftover in database.parent.glob("*.db*"):
        leftover.unlink()
    backup, upgrade = [], []
    for command in commands("operations.md"):
        (upgrade if "pip" in command or "--check" in command else backup).append(command)
    take, *restore = [command for command in backup if INSTALLS.match(command)]
    with serving(database, free_port(0)) as url:
        feed = Feed(url, "kept", ["a"])
        feed.send(range(10), sigma=1.5)
        machine.run(take)
        feed.send(range(10, 20), sigma=2.5)
    for command in restore:
        machine.run(adapted(command, machine))
    with serving(database, free_port(0)) as url:
        history = httpx.get(f"{url}/api/v1/runs/kept/layers/a/history?metric=sigma").json()
        assert (history["steps"], history["mean"]) == (list(range(10)), [1.5] * 10)
        repeated = Feed(url, "kept", ["a"])
        repeated.seq = 1  # the batch that came after the copy is welcome again
        repeated.send(range(10, 20), sigma=2.5)
        assert httpx.get(f"{url}/api/v1/runs/kept").json()["last_step"] == 19
    assert sqlite3.connect(database).execute("pragma integrity_check").fetchone() == ("ok",)
    assert upgrade
    for command in upgrade:
        if command not in machine.ran:
            machine.run(command, cwd=machine.source())


def test_the_commands_about_tokens_and_questions_work_in_their_order(service_url):
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "SNC_URL": service_url}
    Feed(service_url, "shown", ["a"]).send([1], sigma=1.0)
    asked = [c for c in commands("deployment.md") if re.match(r"(snc|curl) ", c)]
    assert len(asked) >= 7
    for command in asked:
        command = command.replace("http://127.0.0.1:8470", service_url)
        command = command.replace("curl", "curl --fail-with-body -sS", 1)
        done = subprocess.run(
            ["bash", "-c", command], env=env, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        if command.startswith("snc token create admin"):
            env["SNC_TOKEN"] = done.stdout.strip()
            assert httpx.get(f"{service_url}/metrics").status_code == 401
    assert "shown" in done.stdout


# What is read by its program ----------------------------------------------------------------------


def test_systemd_is_asked_for_units_that_there_are():
    known = {"snc", "nginx", "caddy", "prometheus"}
    for command in (c for page in PAGES for c in commands(page)):
        words = command.split()
        if words[0] == "systemctl":
            verb, *rest = words[1:]
            assert verb in ("daemon-reload", "enable", "restart", "reload", "start", "stop")
            assert {word for word in rest if not word.startswith("-")} <= known
        elif words[0] == "journalctl":
            assert words[1:3] == ["--unit", "snc"]


def composed() -> list[list[str]]:
    """Return the words of each compose command, without redirection."""
    found = [c for page in PAGES for c in commands(page) if c.startswith("docker compose")]
    return [shlex.split(re.sub(r" [<>]\S+$", "", command))[2:] for command in found]


@needs("docker-compose", "docker-compose")
def test_compose_knows_the_commands():
    verbs = set()
    for words in composed():
        assert words[:2] == ["--file", "deploy/compose.yaml"]
        verb, *rest = words[2:]
        verbs.add(verb)
        done = subprocess.run(["docker-compose", verb, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, verb
        if verb == "exec":
            place = next(place for place, word in enumerate(rest) if word in SERVICES)
            assert rest[place + 1] in ("/opt/snc/bin/snc", "pg_dump", "pg_restore")
            rest = [word for word in rest[:place] if word.startswith("-")]
        for option in rest:
            assert option in SERVICES or re.search(rf"(^|\s){option}\b", done.stdout), (
                verb,
                option,
            )
    assert {"up", "ps", "exec", "stop", "start"} <= verbs


def test_the_tokens_of_compose_are_made_by_commands_that_work(service_url):
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "SNC_URL": service_url}
    tokens = [words[words.index("/opt/snc/bin/snc") :] for words in composed() if "token" in words]
    assert len(tokens) == 3
    for _, *rest in tokens:
        done = subprocess.run(["snc", *rest], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        env.setdefault("SNC_TOKEN", done.stdout.strip())


def test_the_copy_of_a_database_is_restored_as_the_page_says(postgres, tmp_path):
    """pg_dump and pg_restore with the page's own options, on the tests' server."""
    dump, restore = (words[words.index(name) :] for name in ("pg_dump", "pg_restore")
                     for words in composed() if name in words)  # fmt: skip
    url, copy = postgres.new_url(), tmp_path / "snc.dump"
    database, where = url.rpartition("/")[2], [f"--port={postgres.port}", "--host=127.0.0.1"]
    moved = {"snc": database, "--dbname=snc": f"--dbname={database}"}

    def run(command: list[str], **streams: Any) -> None:
        words = [moved.get(word, word) for word in command[1:]]
        program = postgres.program(command[0])
        subprocess.run([program, *where, *words], check=True, timeout=60, **streams)

    given = {"config": {}, "tags": (), "policy": None, "project": "p"}
    with closing(open_store(url)) as store:
        store.runs.create("kept", name="kept", now=1.0, **given)
        with copy.open("wb") as file:
            run(dump, stdout=file)
        store.runs.create("later", name="later", now=2.0, **given)
    with copy.open("rb") as file:
        run(restore, stdin=file)
    with closing(open_store(url)) as store:
        page = store.runs.page(project=None, state=None, limit=10, after=None)
        assert [run.run for run in page.items] == ["kept"]
        store.runs.create("after", name="after", now=3.0, **given)


def test_the_image_is_built_from_the_root_of_a_clone():
    (command,) = [c for c in commands("deployment.md") if c.startswith("docker build")]
    assert command == "docker build --file deploy/Dockerfile --tag snc ."


@needs("kubectl", "kubernetes-client")
@pytest.mark.parametrize("command", [c for c in commands("deployment.md") if "kubectl" in c])
def test_kubectl_understands_the_command(command, tmp_path):
    """A cluster that does not answer is asked only once the command is understood."""
    makes = re.search(r"kubectl (--namespace snc )?create ", command) is not None
    offline = ["--dry-run=client", "--output=yaml"] if makes else []
    before, _, after = command.removeprefix("kubectl ").partition(" -- ")
    done = subprocess.run(
        ["kubectl", "--server=http://127.0.0.1:9", "--request-timeout=2s", *before.split()]
        + offline
        + (["--", *after.split()] if after else []),
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if makes:
        assert done.returncode == 0, done.stderr
        kubernetes_validate.validate(yaml.safe_load(done.stdout), "1.31")
    else:
        assert re.search(r"refused|connect", done.stderr), done.stderr


def test_kubectl_finds_the_objects_by_the_names_on_the_page():
    text = (DOCS / "deployment.md").read_text()
    pod = yaml.safe_load((ROOT / "deploy/kubernetes/replicas/deployment.yaml").read_text())
    assert f"deployment/{pod['metadata']['name']}" in text
    secrets = [
        v["secret"]["secretName"]
        for v in pod["spec"]["template"]["spec"]["volumes"]
        if "secret" in v
    ]
    assert all(f"secret generic {name} " in text for name in secrets)


# The rest of the page -----------------------------------------------------------------------------


def test_the_snippets_are_valid(tmp_path):
    scrape, pod_env = (yaml.safe_load(block) for block in blocks("deployment.md", "yaml"))
    if shutil.which("promtool"):
        (tmp_path / "token").write_text("t")
        for job in scrape["scrape_configs"]:
            job["authorization"]["credentials_file"] = str(tmp_path / "token")
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(scrape))
        check("check", "config", str(tmp_path / "prometheus.yml"))
    container = {"name": "train", "image": "train:1"} | pod_env
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    kubernetes_validate.validate(pod | {"spec": {"containers": [container]}}, "1.31", strict=True)


def test_files_and_links_on_the_pages_exist():
    for page in PAGES:
        text = (DOCS / page).read_text()
        for path in re.findall(r"(?:deploy|bench|docs)/[\w./-]*\w", text):
            assert (ROOT / path).exists(), path
        for link in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (DOCS / link).exists(), link


def settings_table() -> dict[str, str]:
    text = (DOCS / "operations.md").read_text()
    rows = re.findall(r"^\| `(SNC_\w+)` \|(.*?)\|", text, re.MULTILINE)
    return {name: default.strip() for name, default in rows}


def shown(value: Any) -> str:
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{int(value)}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_every_setting_is_on_the_page_with_its_default():
    expected = {variable(each.name): shown(each.default) for each in fields(Settings)}
    assert settings_table() == expected | {"SNC_STORE_FILE": ""}
