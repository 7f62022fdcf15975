"""The Kubernetes objects: they meet their schema, fit together, and fit the service."""

from __future__ import annotations

import subprocess
from typing import Any

import kubernetes_validate
import pytest
import yaml
from machine import needs
from sandbox import ROOT, instructions
from test_prometheus import check

from snc_service.app import create_app
from snc_service.settings import Settings, variable

KUBERNETES = ROOT / "deploy" / "kubernetes"
REPLICAS, ONE_POD = KUBERNETES / "replicas", KUBERNETES / "one-pod"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"

Objects = dict[str, dict[str, Any]]
needs_kubectl = needs("kubectl", "kubernetes-client")


def listed() -> Objects:
    """Return the replicas' objects by kind, read as they stand in their files."""
    names = yaml.safe_load((REPLICAS / "kustomization.yaml").read_text())["resources"]
    found = [yaml.safe_load((REPLICAS / name).read_text()) for name in names]
    return {each["kind"]: each for each in found}


def built(folder: str) -> Objects:
    """Return what kubectl would apply."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


def test_every_file_of_the_replicas_is_applied():
    written = {path.name for path in REPLICAS.iterdir()} - {"kustomization.yaml"}
    assert set(yaml.safe_load((REPLICAS / "kustomization.yaml").read_text())["resources"]) == (
        written
    )


@needs_kubectl
def test_kubectl_builds_the_replicas_as_they_are_written():
    assert built("replicas") == listed()


@pytest.fixture(params=["replicas", pytest.param("one-pod", marks=needs_kubectl)])
def objects(request) -> Objects:
    return listed() if request.param == "replicas" else built(request.param)


@pytest.mark.parametrize("version", ["1.27", "1.31"])
def test_kubernetes_accepts_the_objects(objects, version):
    assert len(objects) >= 4
    for each in objects.values():
        kubernetes_validate.validate(each, version, strict=True)


def test_an_unknown_key_would_be_found():
    wrong = listed()["Service"] | {"spec": {"selectr": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


def test_the_objects_speak_of_the_same_pods(objects):
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    spread = pod_of(objects).get("topologySpreadConstraints", [])
    selectors = [
        objects["Deployment"]["spec"]["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(constraint["labelSelector"]["matchLabels"] for constraint in spread),
    ]
    assert all(selector == labels for selector in selectors)


def pod_of(objects: Objects) -> dict[str, Any]:
    return objects["Deployment"]["spec"]["template"]["spec"]


def container_of(objects: Objects) -> dict[str, Any]:
    (container,) = pod_of(objects)["containers"]
    return container


def test_the_pod_is_not_root_and_writes_only_into_its_volumes(objects):
    pod, container = pod_of(objects), container_of(objects)
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


def test_probes_and_ports_are_the_services_own(objects):
    container = container_of(objects)
    (port,) = container["ports"]
    assert port["containerPort"] == Settings().port
    assert objects["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert objects["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"] == port["name"]
    paths = create_app(Settings()).openapi()["paths"].keys()
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["path"] in paths
        assert container[probe]["httpGet"]["port"] == port["name"]
    # A database that is away must not get the pod killed.
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_settings_of_the_pod_exist_and_its_secrets_are_references(objects):
    names = {entry["name"] for entry in container_of(objects)["env"]}
    known = {variable(name) for name in Settings.__dataclass_fields__}
    assert names <= known | {"SNC_STORE_FILE"}
    assert "Secret" not in objects  # a secret in git is none


def test_the_pod_has_time_to_drain(objects):
    from snc_service.cli.commands.serve import DRAIN_SECONDS

    stop = container_of(objects)["lifecycle"]["preStop"]["exec"]["command"]
    assert stop[0] == "sleep"
    grace = pod_of(objects)["terminationGracePeriodSeconds"]
    assert grace >= int(stop[1]) + 2 * DRAIN_SECONDS


def test_the_replicas_share_a_database_whose_url_is_a_secret():
    objects = listed()
    deployment, container = objects["Deployment"]["spec"], container_of(objects)
    assert deployment["replicas"] >= 2
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    store = next(entry for entry in container["env"] if entry["name"] == "SNC_STORE_FILE")
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert store["value"] == f"{mounts['store']}/url"
    (volume,) = [each for each in pod_of(objects)["volumes"] if each["name"] == "store"]
    assert volume["secret"] == {"secretName": "snc-store"}
    assert not any("persistentVolumeClaim" in each for each in pod_of(objects)["volumes"])
    out = [port["port"] for rule in objects["NetworkPolicy"]["spec"]["egress"] for port in
           rule["ports"]]  # fmt: skip
    assert 5432 in out
    budget = objects["PodDisruptionBudget"]["spec"]
    assert 1 <= budget["minAvailable"] < deployment["replicas"]


@needs_kubectl
def test_one_pod_has_the_file_and_nothing_waits_for_a_second_one():
    objects = built("one-pod")
    deployment, container = objects["Deployment"]["spec"], container_of(objects)
    assert deployment["replicas"] == 1
    assert deployment["strategy"] == {"type": "Recreate"}
    assert objects["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert "minAvailable" not in objects["PodDisruptionBudget"]["spec"]
    # Without SNC_STORE, the image's own: a file in the folder that the claim is mounted at.
    assert not {entry["name"] for entry in container["env"]} & {"SNC_STORE", "SNC_STORE_FILE"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["data"] == "/var/lib/snc"
    assert "SNC_STORE=sqlite:////var/lib/snc/" in DOCKERFILE.read_text()
    claims = [each["persistentVolumeClaim"]["claimName"] for each in pod_of(objects)["volumes"]
              if each["name"] == "data"]  # fmt: skip
    assert claims == [objects["PersistentVolumeClaim"]["metadata"]["name"]]


@needs("promtool", "prometheus")
def test_the_prometheus_of_a_cluster_has_the_limits_of_the_shipped_one(tmp_path):
    whole = yaml.safe_load((KUBERNETES / "prometheus.yml").read_text())
    jobs = whole["scrape_configs"]
    # Debian builds promtool without the discovery of a cluster: the rest of the file is checked.
    (found,) = [each for job in jobs for each in job.pop("kubernetes_sd_configs", [])]
    (tmp_path / "token").write_text("t")
    (tmp_path / "alerts.yml").write_text((ROOT / "deploy/alerts.yml").read_text())
    for job in jobs:
        assert job["authorization"] == {"credentials_file": "/etc/snc/prometheus-token"}
        job["authorization"]["credentials_file"] = str(tmp_path / "token")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(whole))
    assert "SUCCESS" in check("check", "config", str(tmp_path / "prometheus.yml"))
    (shipped,) = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"]
    limits = {key: value for key, value in shipped.items() if "limit" in key}
    assert limits
    assert all(limits.items() <= job.items() for job in jobs)
    # Together the jobs take every part once.
    parts = [part for job in jobs for part in job["params"]["collect"]]
    assert sorted(parts) == ["layers", "process", "runs"]
    assert jobs[0]["job_name"] == "snc"  # whose `up` the alerts and the dashboards read
    assert found["role"] == "pod"
    key, _, value = found["selectors"][0]["label"].partition("=")
    assert listed()["Deployment"]["spec"]["template"]["metadata"]["labels"] == {key: value}
