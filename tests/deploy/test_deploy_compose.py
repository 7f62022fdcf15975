"""The compose file: its schema, its secrets, and its commands run against each other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from feed import Feed
from machine import needs, needs_root
from sandbox import ROOT
from test_deploy_image import DOCKERFILE, running
from test_prometheus import check, eventually, query

from snc_client.demo.service import free_port
from snc_service.settings import Settings, variable

DEPLOY = ROOT / "deploy"
SERVICES = {"snc", "postgres", "prometheus", "alertmanager", "grafana"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


@pytest.fixture
def secrets(tmp_path) -> Path:
    """Return the folder that the script makes."""
    folder = tmp_path / "secrets"
    make_secrets(folder)
    return folder


def make_secrets(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(DEPLOY / "compose/secrets.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def compose_config(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker-compose", "--file", str(DEPLOY / "compose.yaml"), "config", *arguments],
        env={"PATH": os.environ["PATH"]} | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs("docker-compose", "docker-compose")
def test_compose_accepts_its_file_and_asks_for_secrets():
    done = compose_config("--services", SNC_SECRETS="/etc/snc")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == SERVICES
    refused = compose_config()
    assert refused.returncode != 0
    assert "SNC_SECRETS" in refused.stderr
    assert "deploy/compose/secrets.sh" in refused.stderr


def test_compose_publishes_on_loopback_only_and_gives_no_privileges(compose):
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True
        assert service["restart"] == "unless-stopped"
        assert not service.get("privileged")
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), "pin a version"
    assert "ports" not in compose["services"]["postgres"]  # nobody but the service needs it


def test_each_container_is_asked_whether_it_is_well(compose):
    has_own = {"snc": "HEALTHCHECK " in DOCKERFILE.read_text()}
    for name, service in compose["services"].items():
        assert has_own.get(name) or service["healthcheck"]["test"][0] == "CMD", name
    assert compose["services"]["snc"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert compose["services"]["prometheus"]["depends_on"]["snc"]["condition"] == "service_healthy"


def test_compose_mounts_what_is_there(compose):
    for name, service in compose["services"].items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), mount
                assert mount.endswith(":ro")
            else:
                assert source in compose["volumes"], (name, source)
    build = compose["services"]["snc"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DOCKERFILE)


# Secrets ------------------------------------------------------------------------------------------


def test_no_secret_stands_in_the_file_or_in_an_environment(compose):
    places = [str(value) for service in compose["services"].values()
              for name, value in service.get("environment", {}).items()
              if re.search("PASSWORD|TOKEN|SECRET|STORE", name)]  # fmt: skip
    assert len(places) == 3
    assert all(place.startswith("/run/secrets/") for place in places)


def test_each_secret_is_made_given_to_who_reads_it_and_read_by_who_gets_it(compose, secrets):
    made = {path.name for path in secrets.iterdir()}
    declared = {name: Path(entry["file"]).name for name, entry in compose["secrets"].items()}
    assert set(declared.values()) == made
    given = [name for each in compose["services"].values() for name in each.get("secrets", [])]
    assert sorted(given) == sorted(declared)  # each to one container
    text = (DEPLOY / "compose.yaml").read_text() + (DEPLOY / "compose/prometheus.yml").read_text()
    assert set(re.findall(r"/run/secrets/([\w-]+)", text)) == set(declared)


def test_secrets_are_random_and_only_their_owner_reaches_them(secrets, tmp_path):
    assert secrets.stat().st_mode & 0o777 == 0o700
    texts = {path.name: path.read_text() for path in secrets.iterdir()}
    assert re.fullmatch("[0-9a-f]{48}", texts["postgres-password"])
    assert re.fullmatch("[0-9a-f]{48}", texts["grafana-password"])
    assert texts["postgres-password"] != texts["grafana-password"]
    make_secrets(tmp_path / "others")
    assert texts["postgres-password"] != (tmp_path / "others/postgres-password").read_text()


def test_secrets_that_are_there_stay(secrets):
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    (secrets / "prometheus-token").write_text("snc_mine")
    assert make_secrets(secrets).returncode == 0
    after = {path.name: path.read_text() for path in secrets.iterdir()}
    assert after == before | {"prometheus-token": "snc_mine"}


def test_without_a_folder_the_script_says_what_it_needs():
    done = make_secrets()
    assert done.returncode != 0
    assert "name the folder" in done.stderr


def test_the_store_url_is_that_of_the_database_beside_it(compose, secrets):
    url = (secrets / "store-url").read_text()
    own = compose["services"]["postgres"]["environment"]
    user, password, host, port, name = re.fullmatch(
        r"postgresql://(\w+):(\w+)@(\w+):(\d+)/(\w+)", url
    ).groups()
    assert (user, name) == (own["POSTGRES_USER"], own["POSTGRES_DB"])
    assert password == (secrets / "postgres-password").read_text()
    assert (host, port) == ("postgres", "5432")
    assert host in compose["services"]


# The services against each other ------------------------------------------------------------------


def test_compose_sets_only_settings_that_the_service_has(compose, secrets):
    environment = compose["services"]["snc"]["environment"]
    place = {"SNC_STORE_FILE": str(secrets / Path(environment["SNC_STORE_FILE"]).name)}
    settings = Settings.from_env(environment | place | {"SNC_HOST": "127.0.0.1"})
    assert settings.store == (secrets / "store-url").read_text()
    assert settings.public_host == "snc:8470"
    known = {variable(name) for name in Settings.__dataclass_fields__}
    assert set(environment) <= known | {"SNC_STORE_FILE"}
    # The health check asks for 127.0.0.1, Prometheus for snc, a browser for localhost.
    assert set(settings.allowed_hosts) == {"localhost", "127.0.0.1", "snc"}


def test_a_database_that_is_there_passes_its_health_check_and_no_other_does(compose, postgres):
    command = compose["services"]["postgres"]["healthcheck"]["test"][1:]
    program = postgres.program(command[0])
    for port, healthy in ((postgres.port, True), (free_port(0), False)):
        done = subprocess.run([program, *command[1:], f"--port={port}"], capture_output=True)
        assert (done.returncode == 0) is healthy


@pytest.fixture
def composed(tmp_path, secrets) -> Path:
    """Return a folder that holds what Prometheus' and Alertmanager's containers would hold."""
    for source in ("compose/prometheus.yml", "compose/alertmanager.yml", "alerts.yml"):
        shutil.copy(DEPLOY / source, tmp_path)
    path = tmp_path / "prometheus.yml"
    path.write_text(path.read_text().replace("/run/secrets", str(secrets)))
    return tmp_path


@needs("promtool", "prometheus")
def test_the_composed_prometheus_is_the_shipped_one_elsewhere(composed):
    assert "SUCCESS" in check("check", "config", str(composed / "prometheus.yml"))
    ours = yaml.safe_load((composed / "prometheus.yml").read_text())
    shipped = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    del ours["alerting"]
    for job in ours["scrape_configs"]:
        del job["authorization"]
    for text in (ours, shipped):
        for job in text["scrape_configs"]:
            del job["static_configs"]
    assert ours == shipped


@needs("amtool", "prometheus-alertmanager")
def test_alertmanager_accepts_its_configuration():
    path = str(DEPLOY / "compose/alertmanager.yml")
    done = subprocess.run(["amtool", "check-config", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@contextmanager
def started(program: str, arguments: list[str], folder: Path) -> Iterator[None]:
    with (
        (folder / f"{program}.log").open("wb") as log,
        subprocess.Popen(
            [program, *arguments], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def prometheus_of(
    compose: dict[str, Any], composed: Path, changes: dict[str, str]
) -> Iterator[str]:
    """Run Prometheus as its container would, once a second; yield its URL."""
    text = (composed / "prometheus.yml").read_text()
    for old, new in (
        {
            "scrape_interval: 15s": "scrape_interval: 1s",
            "scrape_timeout: 10s": "scrape_timeout: 1s",
            "evaluation_interval: 15s": "evaluation_interval: 1s",
        }
        | changes
    ).items():
        assert old in text
        text = text.replace(old, new)
    (composed / "prometheus.yml").write_text(text)
    places = {"/etc/prometheus": composed, "/prometheus": composed / "tsdb"}
    address = f"127.0.0.1:{free_port(0)}"
    arguments = [*command_of(compose["services"]["prometheus"], places),
                 f"--web.listen-address={address}"]  # fmt: skip
    with started("prometheus", arguments, composed):
        yield f"http://{address}"


def command_of(service: dict[str, Any], places: dict[str, Path]) -> list[str]:
    """Return the arguments of a container with its folders moved."""
    moved = []
    for word in service["command"]:
        flag, _, value = word.partition("=")
        place = next((place for place in places if value.startswith(place)), "")
        moved.append(f"{flag}={places[place]}{value[len(place) :]}" if place else word)
    return moved


@needs("prometheus", "prometheus")
@needs("prometheus-alertmanager", "prometheus-alertmanager")
def test_an_alert_walks_from_a_run_to_alertmanager(compose, composed, service_url):
    manager = f"127.0.0.1:{free_port(0)}"
    places = {"/etc/alertmanager": composed, "/alertmanager": composed / "am"}
    arguments = command_of(compose["services"]["alertmanager"], places)
    arguments += [f"--web.listen-address={manager}", "--cluster.listen-address="]
    changes = {"snc:8470": service_url.removeprefix("http://"), "alertmanager:9093": manager}
    Feed(service_url, "broken", ["a"]).send([1], sigma=float("nan"), threshold=2.0)
    with (
        started("prometheus-alertmanager", arguments, composed),
        prometheus_of(compose, composed, changes) as prometheus,
    ):
        found = eventually(lambda: alerts(f"http://{manager}"))
        assert {"alertname": "SncNonFinite", "run": "broken"}.items() <= found[0].items()
        assert query(prometheus, 'up{job="snc"}') == {(): 1}


def alerts(url: str) -> list[dict[str, str]]:
    try:
        answer = httpx.get(f"{url}/api/v2/alerts", timeout=2)
    except httpx.HTTPError:
        return []
    return [alert["labels"] for alert in answer.json()] if answer.status_code == 200 else []


@needs_root
@needs("prometheus", "prometheus")
@pytest.mark.timeout(300)
def test_the_composed_services_work_together_before_and_after_the_first_token(
    image, postgres, compose, composed, secrets
):
    sandbox, stage = image
    # The database beside it is the tests' own. Its file stands where any user can read it.
    (sandbox.root / "store-url").write_text(postgres.new_url())
    env = compose["services"]["snc"]["environment"]
    env = env | {"SNC_STORE_FILE": str(sandbox.root / "store-url")}
    with running(sandbox, stage, **env) as url:
        changes = {"snc:8470": url.removeprefix("http://")}
        changes["alertmanager:9093"] = "127.0.0.1:9"
        Feed(url, "composed", ["a"]).send([1], sigma=1.5)
        with prometheus_of(compose, composed, changes) as prometheus:
            eventually(lambda: asked(prometheus, "snc_sigma") == {("a", "composed"): 1.5})
            admin = sandbox.run(f"SNC_URL={url} /opt/snc/bin/snc token create admin --scope admin")
            eventually(lambda: asked(prometheus, "up") == {(): 0})
            made = sandbox.run(
                f"SNC_URL={url} SNC_TOKEN={admin.strip()} "
                "/opt/snc/bin/snc token create prometheus --scope read"
            )
            (secrets / "prometheus-token").write_text(made)
            eventually(lambda: asked(prometheus, "up") == {(): 1})


def asked(prometheus: str, expression: str) -> dict[tuple[str, ...], float]:
    try:
        return query(prometheus, expression)
    except httpx.HTTPError:
        return {}  # it has only just started


def test_grafana_finds_its_dashboards_where_compose_puts_them(compose):
    grafana = compose["services"]["grafana"]
    mounts = {part[0]: part[1] for part in (m.split(":") for m in grafana["volumes"])}
    provider = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/snc.yml").read_text())[
        "providers"
    ][0]
    assert mounts["./grafana/dashboards"] == provider["options"]["path"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"])
    assert (DEPLOY / "grafana/dashboards" / Path(home).name).exists()
    source = (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", source)) <= set(grafana["environment"])
