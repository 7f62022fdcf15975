"""Dashboards for Grafana's page of imports, and the one that asks REST along the steps."""

import json
import re
import shutil
import subprocess
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from dashboards import GRAFANA, boards, panels
from feed import Feed

INFINITY = "yesoreyeram-infinity-datasource"


def imported() -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in (GRAFANA / "import").glob("*")}


def test_what_is_imported_asks_for_its_source_and_is_else_what_is_provisioned():
    found = imported()
    steps = found.pop("steps")
    assert found.keys() == boards().keys()
    for name, board in found.items():
        (asked,) = board.pop("__inputs")
        assert (asked["name"], asked["type"], asked["pluginId"]) == (
            "DS_PROMETHEUS", "datasource", "prometheus",
        )  # fmt: skip
        assert {each["type"] for each in board.pop("__requires")} == {
            "grafana", "datasource", "panel",
        }  # fmt: skip
        variables = {each["name"]: each for each in board["templating"]["list"]}
        current = variables["datasource"].pop("current")
        assert current["value"] == "${DS_PROMETHEUS}"
        provisioned = boards()[name]
        for each in provisioned["templating"]["list"]:
            if each["name"] == "datasource":
                each.pop("current", None)
        assert board == provisioned
    (asked,) = steps["__inputs"]
    assert asked["pluginId"] == INFINITY
    assert steps["templating"]["list"][0]["current"]["value"] == "${DS_INFINITY}"


def test_no_board_names_a_job_of_its_own():
    for path in GRAFANA.rglob("*.json"):
        for job in re.findall(r'\bjob=~?\\"([^"\\]*)', path.read_text()):
            assert job == "$job", path
    service = {each["name"]: each for each in boards()["service"]["templating"]["list"]}
    assert service["job"]["query"]["query"] == "label_values(snc_build_info, job)"


def rest_queries() -> dict[str, dict]:
    """Return every query of the board over REST by panel or variable, and its number."""
    board = imported()["steps"]
    found = {
        f"{panel['title']} {target['refId']}": target
        for panel in panels(board)
        for target in panel["targets"]
    }
    return found | {
        each["name"]: each["query"]["infinityQuery"]
        for each in board["templating"]["list"]
        if each["type"] == "query"
    }


@pytest.fixture
def answers(service_url) -> dict[str, object]:
    """Return what a real service answers to each query."""
    layer = "blocks/0.q b.weight"
    feed = Feed(service_url, "a.run", [layer, "other"])
    sigma = [[1 + step / 8, 5.0] for step in range(40)]
    loss = 2 - np.arange(40) / 40
    feed.send(range(40), sigma=sigma, threshold=4.0, scalars={"loss": loss})
    found = {}
    for name, asked in rest_queries().items():
        url = asked["url"]
        for variable, value in (("run", "a.run"), ("layer", layer)):
            url = url.replace(f"${{{variable}:percentencode}}", quote(value, safe=""))
        answer = httpx.get(url.replace("${service}", service_url))
        assert answer.status_code == 200, (name, answer.text)
        found[name] = answer.json()
    return found


def test_a_real_service_answers_every_query_with_rows_of_its_columns(answers):
    if shutil.which("jq") is None:
        pytest.skip("jq is missing: install the Debian package jq")
    assert len(answers) == 7
    for name, asked in rest_queries().items():
        assert asked["parser"] == "jq-backend"
        done = subprocess.run(
            ["jq", "-c", asked["root_selector"]],
            input=json.dumps(answers[name]), capture_output=True, text=True, check=True,
        )  # fmt: skip
        rows = json.loads(done.stdout)
        columns = [column["selector"] for column in asked["columns"]]
        assert rows, name
        assert all(set(columns) <= row.keys() for row in rows), name
        if name == "Sigma of the layer sigma":
            assert rows == [{"step": step, "sigma": 1 + step / 8} for step in range(40)]


def test_lines_lie_over_steps_in_a_frame_that_is_joined_by_the_step():
    for panel in panels(imported()["steps"]):
        if panel["type"] == "trend":
            assert panel["options"]["xField"] == "step"
            names = [target["columns"][1]["text"] for target in panel["targets"]]
            assert len(set(names)) == len(names)
            joins = [each["options"] for each in panel.get("transformations", ())]
            assert joins == [{"byField": "step", "mode": "outer"}] * (len(names) > 1)
