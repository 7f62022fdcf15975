"""The dashboards: built from code, every query of them answered by a real Prometheus with data."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import yaml
from dashboards import GRAFANA, Query, boards, every_query, metrics_of, panels
from feed import Feed
from test_prometheus import DEPLOY, eventually, needs_prometheus, query, scraping, shipped
from torch import nn

from snc_client import SNCallback
from snc_client.demo.service import free_port, serving
from snc_service.exposition import FAMILIES

# From Prometheus itself, and from the collector of a process that every client library has.
STANDARD = {
    "up",
    "ALERTS",
    "scrape_duration_seconds",
    "process_resident_memory_bytes",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_max_fds",
}


def served() -> set[str]:
    """Return the names of all series that the service exposes."""
    names = {family.name for family in FAMILIES}
    for family in FAMILIES:
        if family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return names


def recorded() -> set[str]:
    groups = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    return {rule["record"] for group in groups for rule in group["rules"] if "record" in rule}


def test_the_json_is_what_the_code_builds(tmp_path):
    pytest.importorskip(
        "grafana_foundation_sdk",
        reason="the builders are missing: "
        "pip install 'spectral-norm-constraint[dashboards]' (Python 3.11 or later)",
    )
    subprocess.run([sys.executable, str(GRAFANA / "build.py"), str(tmp_path)], check=True)
    built, kept = (
        {f"{path.parent.name}/{path.name}": path.read_text() for path in folder.rglob("*.json")}
        for folder in (tmp_path, GRAFANA)
    )
    assert built == kept, "run python deploy/grafana/build.py and commit what it writes"


def test_every_query_names_only_metrics_that_exist():
    known = served() | recorded() | STANDARD
    for asked in every_query():
        names = metrics_of(asked.expr)
        assert names, asked
        assert names <= known, f"{asked}: {names - known}"


@pytest.mark.parametrize(
    ("expr", "names"),
    [
        ("snc_sigma", {"snc_sigma"}),
        ('max by (run, layer) (snc_sigma{run="a b", layer=~"c"} offset 5m) > 1', {"snc_sigma"}),
        ("a and on (run) topk(3, b @ end()) or 0 * c:d_e[5m] == Inf", {"a", "b", "c:d_e"}),
        ('label_values(snc_sigma{run="$run"}, layer)', {"snc_sigma"}),
        ("histogram_quantile(0.99, sum by (le) (rate(x_bucket[1m])))", {"x_bucket"}),
        ("snc_sigmaa / (y > 0)", {"snc_sigmaa", "y"}),
    ],
)
def test_the_names_in_an_expression_are_found(expr, names):
    assert metrics_of(expr) == names


def test_a_query_of_layers_is_labelled_by_layer():
    for asked in every_query():
        if asked.kind in ("timeseries", "heatmap") and re.search(r"by \(layer\)", asked.expr):
            assert "{{layer}}" in asked.legend, asked


def test_lines_do_not_flicker():
    for asked in every_query():
        for chosen in re.findall(r"topk\((.*)", asked.expr):
            assert asked.instant or "@ end()" in chosen, asked


def test_the_step_is_never_a_counter():
    for asked in every_query():
        assert not re.search(r"(rate|increase|irate)\(\s*snc_run_last_step", asked.expr), asked


def test_a_dashboard_is_found_by_its_name_and_says_what_each_panel_shows():
    found = boards()
    assert {board["uid"] for board in found.values()} == {f"snc-{name}" for name in found}
    for board in found.values():
        assert [panel["id"] for panel in panels(board)] == list(range(1, 1 + count(board)))
        for panel in panels(board):
            if panel["type"] != "row":
                assert panel["description"].endswith("."), panel["title"]
                assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
                assert panel["targets"], panel["title"]


def count(board: dict[str, Any]) -> int:
    return len(list(panels(board)))


def test_panels_lie_side_by_side():
    for board in boards().values():
        taken: dict[tuple[int, int], str] = {}
        for panel in panels(board):
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_links_lead_to_dashboards_and_to_the_page():
    text = "".join(path.read_text() for path in (GRAFANA / "dashboards").iterdir())
    uids = {board["uid"] for board in boards().values()}
    linked = set(re.findall(r'"/d/([\w-]+)\?', text))
    assert linked
    assert linked <= uids
    assert "${service}/#/runs/${run}" in text  # tests/page/test_page.py opens that address


def test_grafana_is_provisioned_with_our_prometheus_and_these_dashboards():
    folder = GRAFANA / "provisioning"
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())
    provider = yaml.safe_load((folder / "dashboards" / "snc.yml").read_text())
    assert source["apiVersion"] == provider["apiVersion"] == 1
    (prometheus,) = source["datasources"]
    assert (prometheus["type"], prometheus["access"]) == ("prometheus", "proxy")
    assert prometheus["isDefault"] is True
    interval = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert prometheus["jsonData"]["timeInterval"] == interval  # $__rate_interval is made of it
    (dashboards,) = provider["providers"]
    assert dashboards["type"] == "file"


RUN, INTERVAL = "trained", 1
VARIABLES = {
    "$__rate_interval": f"{4 * INTERVAL}s",
    "$__interval": f"{INTERVAL}s",
    "$run": RUN,
    "$layer": ".*",
    "$project": ".*",
    "$job": "snc",
}
SECONDS = 10
LATE_STEP = 60  # from which on a layer is broken: what is new must begin after the first scrape


def train(url: str) -> None:
    """Train for some seconds, held under a threshold, while a second writer reports trouble."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    trouble = Feed(url, RUN, ["planted.nan", "planted.high"], project="research")
    end = time.monotonic() + SECONDS
    step = 0
    with SNCallback(
        model, threshold="1.01x init", certify_every=1, url=url, run=RUN, project="research"
    ) as callback:
        while time.monotonic() < end or step < 2 * LATE_STEP:  # a busy machine takes few steps
            x = torch.randn(16, 8)
            loss = (model(x) - 3 * x[:, :4]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callback.step(loss=loss)
            if step % 10 == 0:
                report_trouble(trouble, step)
            step += 1
            time.sleep(0.05)
        assert callback.errors == 0
    refused = httpx.post(f"{url}/api/v1/runs/{RUN}/batches", json={"writer": "w"})
    assert refused.status_code == 422


def report_trouble(trouble: Feed, step: int) -> None:
    late = step >= LATE_STEP
    trouble.send(
        [step],
        sigma=[[math.nan if late else 1.0, 3.0 if late else 1.0]],
        threshold=2.0,
        sigma_upper=3.5,
        scale=[[1.0, 0.5]],
        scalars={"guard_vetoes": np.float32(late)},
        dropped=7,
    )


@needs_prometheus
@pytest.mark.timeout(180)
def test_every_query_of_every_dashboard_returns_data_of_a_real_training(tmp_path, monkeypatch):
    monkeypatch.setenv("SNC_SILENT_SECONDS", "2")
    with (
        serving(tmp_path / "snc.db", free_port(0)) as url,
        scraping(tmp_path, shipped(url)) as prometheus,
    ):
        eventually(lambda: query(prometheus, "snc_build_info"))
        start = time.time()
        Feed(url, "quiet", ["a"], project="research").send([0], sigma=1.0)
        train(url)
        eventually(lambda: query(prometheus, f'ALERTS{{alertstate="firing", run="{RUN}"}}'))
        eventually(lambda: query(prometheus, 'snc_run_silent{run="quiet"} == 1'))
        end = time.time()
        numbers = {
            asked.panel: newest_value(prometheus, asked, start, end)
            for asked in every_query()
            if asked.board == "fleet" and asked.kind == "stat"
        }
        empty = [
            f"{each}: {why}"
            for each in every_query()
            if (why := trouble_with(prometheus, each, start, end))
        ]
    assert not empty, "\n".join(empty)
    assert numbers["Silent runs"] == numbers["Runs above a threshold"] == 1
    assert numbers["Layers not finite"] == 1
    assert numbers["Values lost"] % 7 == 0


def trouble_with(prometheus: str, asked: Query, start: float, end: float) -> str | None:
    """Return what is wrong with the answer to a query, None if it has a finite value."""
    expr = filled(asked, start, end)
    if asked.kind == "variable":
        return None if values_of(prometheus, expr) else "no value"
    series = series_of(prometheus, expr, asked.instant, start, end)
    if isinstance(series, str) or not series:
        return series or "no series"
    values = [value for each in series for value in each]
    return None if any(map(math.isfinite, values)) else "no finite value"


def newest_value(prometheus: str, asked: Query, start: float, end: float) -> float:
    (series,) = series_of(prometheus, filled(asked, start, end), asked.instant, start, end)
    assert not isinstance(series, str)
    return series[-1]


def filled(asked: Query, start: float, end: float) -> str:
    expr = asked.expr.replace(" or vector(0)", "")  # a constant proves nothing
    for name, value in {**VARIABLES, "$__range": f"{end - start:.0f}s"}.items():
        expr = expr.replace(name, value)
    assert "$" not in expr
    return expr


def series_of(
    prometheus: str, expr: str, instant: bool, start: float, end: float
) -> list[list[float]] | str:
    """Return the values of each series, or what Prometheus said against the expression."""
    window = {"time": end} if instant else {"start": start, "end": end, "step": INTERVAL}
    path = "query" if instant else "query_range"
    answer = httpx.get(f"{prometheus}/api/v1/{path}", params={"query": expr, **window}).json()
    if answer["status"] != "success":
        return str(answer)
    return [
        [float(value) for _, value in ([each["value"]] if instant else each["values"])]
        for each in answer["data"]["result"]
    ]


def values_of(prometheus: str, expr: str) -> list[str]:
    """Answer ``label_values(selector, label)`` as Grafana does."""
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", expr)
    assert match is not None, expr
    answer = httpx.get(
        f"{prometheus}/api/v1/label/{match[2]}/values", params={"match[]": match[1]}
    ).raise_for_status()
    return list(answer.json()["data"])


def test_the_folder_holds_nothing_but_what_is_tested_here():
    kept = {str(path.relative_to(GRAFANA)) for path in GRAFANA.rglob("*.*") if path.is_file()}
    built = {f"{folder}/{name}.json" for name in boards() for folder in ("dashboards", "import")}
    built.add("import/steps.json")
    code = {path for path in kept if path.endswith(".py")}
    cached = {path for path in kept if "__pycache__" in Path(path).parts}
    assert kept - built - code - cached == {
        "provisioning/datasources/prometheus.yml",
        "provisioning/dashboards/snc.yml",
    }
