"""Images, compose, Kubernetes and systemd: what can be executed is, the rest meets its schema."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from feed import Feed
from sandbox import ROOT, Sandbox, Stage, instructions
from test_prometheus import answers, check, eventually, query

from snc_client.demo.service import free_port
from snc_service.app import create_app
from snc_service.settings import Settings, variable

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def needs(tool: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(tool) is None,
        reason=f"{tool} is missing: install the Debian package {package}",
    )


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming the image's user needs root")


# The image ----------------------------------------------------------------------------------------


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
    process = sandbox.start(stage, SNC_INSECURE="1")
    try:
        url = f"http://127.0.0.1:{sandbox.port}"
        eventually(lambda: answers(f"{url}/readyz"))
        assert healthy(sandbox, stage)
        assert Path(f"/proc/{process.pid}/status").read_text().count("\t10001\t") >= 2
        Feed(url, "imaged", ["a"]).send([1, 2], sigma=1.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=15) in (0, -signal.SIGTERM)  # both are a clean end
    finally:
        process.kill()
        process.communicate()
    assert (sandbox.root / "var/lib/snc/snc.db").stat().st_uid == 10001
    # What stands for a read-only root file system: nothing else was written, nor could it be.
    assert written_outside(sandbox, built) == []
    others = [p for p in sandbox.root.rglob("*") if p.lstat().st_uid == 10001]
    assert {p.relative_to(sandbox.root).parts[:3] for p in others} == {("var", "lib", "snc")}


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


# Compose ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def compose_config(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["docker-compose", "--file", str(DEPLOY / "compose.yaml"), "config", *arguments],
        env={"PATH": os.environ["PATH"]} | env,
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs("docker-compose", "docker-compose")
def test_compose_accepts_its_file_and_asks_for_a_password():
    done = compose_config("--services", GRAFANA_PASSWORD="a")
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {"snc", "prometheus", "alertmanager", "grafana"}
    refused = compose_config()
    assert refused.returncode != 0
    assert "GRAFANA_PASSWORD" in refused.stderr


def test_compose_publishes_on_loopback_only_and_gives_no_privileges(compose):
    for name, service in compose["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), "pin a version"
    assert compose["services"]["snc"]["read_only"] is True


def test_compose_mounts_what_is_there(compose):
    for name, service in compose["services"].items():
        for mount in service["volumes"]:
            mount = re.sub(r"\$\{\w+:-(.*?)\}", r"\1", mount)
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), mount
                assert mount.endswith(":ro")
            else:
                assert source in compose["volumes"], (name, source)
    build = compose["services"]["snc"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).samefile(DOCKERFILE)


def test_compose_sets_only_settings_that_the_service_has(compose):
    environment = compose["services"]["snc"]["environment"]
    settings = Settings.from_env(environment | {"SNC_HOST": "127.0.0.1"})
    assert settings.public_host == "snc:8470"
    assert set(environment) <= {variable(name) for name in Settings.__dataclass_fields__}
    # The health check asks for 127.0.0.1, Prometheus for snc, a browser for localhost.
    assert set(settings.allowed_hosts) == {"localhost", "127.0.0.1", "snc"}


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


@pytest.fixture
def composed(tmp_path) -> Path:
    """Return a folder that holds what Prometheus' and Alertmanager's containers would hold."""
    for source in ("compose/prometheus.yml", "compose/alertmanager.yml", "alerts.yml"):
        shutil.copy(DEPLOY / source, tmp_path)
    shutil.copy(DEPLOY / "compose/no-token", tmp_path / "snc-token")
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


def started(program: str, arguments: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with (folder / f"{program}.log").open("wb") as log:
        return subprocess.Popen(
            [program, *arguments], cwd=folder, stdout=log, stderr=subprocess.STDOUT
        )


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
    services = compose["services"]
    ports = {name: free_port(0) for name in ("prometheus", "alertmanager")}
    text = (composed / "prometheus.yml").read_text()
    for old, new in {
        "snc:8470": service_url.removeprefix("http://"),
        "alertmanager:9093": f"127.0.0.1:{ports['alertmanager']}",
        "scrape_interval: 15s": "scrape_interval: 1s",
        "scrape_timeout: 10s": "scrape_timeout: 1s",
        "evaluation_interval: 15s": "evaluation_interval: 1s",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (composed / "prometheus.yml").write_text(text)
    Feed(service_url, "broken", ["a"]).send([1], sigma=float("nan"), threshold=2.0)
    listen = [f"--web.listen-address=127.0.0.1:{port}" for port in ports.values()]
    alertmanager = command_of(
        services["alertmanager"], {"/etc/alertmanager": composed, "/alertmanager": composed / "am"}
    )
    prometheus = command_of(
        services["prometheus"], {"/etc/prometheus": composed, "/prometheus": composed / "tsdb"}
    )
    running = [
        started("prometheus", [*prometheus, listen[0]], composed),
        started(
            "prometheus-alertmanager",
            [*alertmanager, listen[1], "--cluster.listen-address="],
            composed,
        ),
    ]
    try:
        found = eventually(lambda: alerts(f"http://127.0.0.1:{ports['alertmanager']}"))
        assert {"alertname": "SncNonFinite", "run": "broken"}.items() <= found[0].items()
        assert query(f"http://127.0.0.1:{ports['prometheus']}", 'up{job="snc"}') == {(): 1}
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait(timeout=30)


def alerts(url: str) -> list[dict[str, str]]:
    try:
        answer = httpx.get(f"{url}/api/v2/alerts", timeout=2)
    except httpx.HTTPError:
        return []
    return [alert["labels"] for alert in answer.json()] if answer.status_code == 200 else []


# Kubernetes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    return {(each := yaml.safe_load(path.read_text()))["kind"]: each for path in KUBERNETES}


@pytest.mark.parametrize("version", ["1.27", "1.31"])
@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_kubernetes_accepts_the_object(path, version):
    for each in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(each, version, strict=True)


def test_an_unknown_key_would_be_found(objects):
    wrong = objects["Service"] | {"spec": {"selectr": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


def test_the_objects_speak_of_the_same_pods(objects):
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert all(selector == labels for selector in selectors)


def test_the_pod_is_not_root_and_writes_only_into_its_volumes(objects):
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    user = dict(instructions(DOCKERFILE.read_text()))["USER"]
    context = pod["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {volume["name"] for volume in pod["volumes"]}
    assert mounts["data"] == "/var/lib/snc"
    claims = [
        v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if v["name"] == "data"
    ]
    assert claims == [objects["PersistentVolumeClaim"]["metadata"]["name"]]


def test_probes_and_ports_are_the_services_own(objects):
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == Settings().port
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert objects["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"] == port["name"]
    routes = {str(getattr(route, "path", "")) for route in create_app(Settings()).routes}
    paths = create_app(Settings()).openapi()["paths"].keys() | routes
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
        assert container[probe]["httpGet"]["port"] == port["name"]


def test_settings_of_the_pod_exist_and_its_secrets_are_references(objects):
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    names = {entry["name"] for entry in container["env"]}
    known = {variable(name) for name in Settings.__dataclass_fields__}
    assert names <= known | {"SNC_STORE_FILE"}
    store = next(entry for entry in container["env"] if entry["name"] == "SNC_STORE_FILE")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert store["value"] == f"{mounts['store']}/url"
    assert "Secret" not in objects  # a secret in git is none


def test_one_replica_is_all_that_one_file_can_have(objects):
    spec = objects["Deployment"]["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"]["type"] == "Recreate"
    assert objects["PodDisruptionBudget"]["spec"] == {
        "maxUnavailable": 1,  # minAvailable 1 would keep its node from ever being drained
        "selector": objects["PodDisruptionBudget"]["spec"]["selector"],
    }


# systemd ------------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path) -> Path:
    """Return the unit with a program that exists, as systemd checks that too."""
    text = (DEPLOY / "systemd" / "snc.service").read_text()
    assert "/opt/snc/bin/snc serve" in text
    path = tmp_path / "snc.service"
    program = tmp_path / "snc"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path.write_text(text.replace("/opt/snc/bin/snc", str(program)))
    return path


def analyzed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60
    )


@needs("systemd-analyze", "systemd")
def test_systemd_understands_the_unit_without_a_word(unit):
    done = analyzed("verify", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


@needs("systemd-analyze", "systemd")
def test_a_wrong_line_in_the_unit_would_be_found(unit):
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHomes="))
    assert "ProtectHomes" in analyzed("verify", str(unit)).stderr


@needs("systemd-analyze", "systemd")
def test_the_unit_is_confined(unit):
    # In tenths of systemd's scale from 0 (safe) to 10: below 2 is what it calls OK.
    done = analyzed("security", "--offline=true", "--threshold=20", str(unit))
    assert done.returncode == 0, done.stdout[-400:]


def test_the_unit_keeps_its_data_where_it_may_write():
    text = (DEPLOY / "systemd" / "snc.service").read_text()
    assert "StateDirectory=snc\n" in text
    assert "Environment=SNC_STORE=sqlite:////var/lib/snc/" in text
