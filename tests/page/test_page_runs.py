"""The list of runs in a real Chromium: found, sorted, tagged, archived, deleted."""

import re
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from chromium import SIGMA, needs_chromium
from feed import Feed
from playwright.sync_api import expect

from snc_client.demo.service import free_port, serving

pytestmark = needs_chromium
RUNS = 230  # more than the page asks for at first


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Iterator[str]:
    """Yield the URL of a service with runs of two projects; r0 is the oldest."""
    with serving(tmp_path_factory.mktemp("many") / "many.db", free_port(0)) as url:
        with httpx.Client(base_url=f"{url}/api/v1") as http:
            for i in range(RUNS):
                config = {"lr": 0.01 if i % 3 else 0.1, "optim": {"name": "adamw"}}
                body = {"run": f"r{i}", "name": f"run {i}", "config": config}
                body |= {"project": "even" if i % 2 else "odd", "tags": ["base"] if i < 3 else []}
                http.post("/runs", json=body).raise_for_status()
                batch = {"writer": "w", "seq": 0, "steps": [i], "scalars": {"loss": [500 - i]}}
                batch["layers"] = ["attn.qkv" if i % 50 == 0 else "fc.weight"]
                batch["metrics"] = {"sigma": [[(i * 7) % 200 / 200]], "threshold": [[1.0]]}
                http.post(f"/runs/r{i}/batches", json=batch).raise_for_status()
            http.post("/runs/r7/finish", json={"state": "failed"}).raise_for_status()
        yield url


def test_runs_are_found_and_sorted_by_the_service_over_all_of_them(opened, many):
    with opened(many, "") as page:
        rows = page.locator(".runs tbody tr")
        expect(rows).to_have_count(200)
        expect(page.locator(".summary").first).to_have_text(
            f"200 of {RUNS} shown: {RUNS - 1} active · 1 failed"
        )
        # The failed run asks for attention; the others follow, the newest first.
        expect(rows.nth(0).locator(".run-name")).to_have_text("run 7")
        expect(rows.nth(1).locator(".run-name")).to_have_text(f"run {RUNS - 1}")
        page.get_by_role("button", name="Loss").click()
        expect(rows.first.locator(".run-name")).to_have_text("run 0")  # beyond the newest 200
        expect(rows.first.locator("[data-key=loss]")).to_have_text("500.0")
        page.get_by_role("button", name="Loss").click()
        expect(rows.first.locator(".run-name")).to_have_text(f"run {RUNS - 1}")
        page.get_by_role("button", name="Show more runs").click()
        expect(rows).to_have_count(RUNS)


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("tag:base config.lr=0.1", ["run 0"]),
        ("layer:*qkv* project:odd", ["run 200", "run 150", "run 100", "run 50", "run 0"]),
        ("state:failed", ["run 7"]),
        ("loss<=273 -project:even", ["run 228"]),
        ('"run 22" step>227', ["run 229", "run 228"]),
    ],
)
def test_one_query_asks_for_config_layers_tags_and_numbers(opened, many, query, names):
    with opened(many, "") as page:
        expect(page.locator(".runs tbody tr")).to_have_count(200)
        page.keyboard.press("/")
        page.keyboard.type(query)
        expect(page.locator(".run-name")).to_have_text(names)
        # The address holds it all.
        page.reload()
        expect(page.locator("#filter")).to_have_value(query)
        expect(page.locator(".run-name")).to_have_text(names)


def test_selectors_write_the_query_and_a_config_value_becomes_a_column(opened, many):
    with opened(many, "") as page:
        page.get_by_label("Project").select_option("even")
        expect(page.locator("#filter")).to_have_value("project:even")
        page.get_by_label("Tag").select_option("base")
        expect(page.locator("#filter")).to_have_value("project:even tag:base")
        expect(page.locator(".run-name")).to_have_text(["run 1"])
        page.locator("summary", has_text="Columns").click()
        page.get_by_label("optim.name").check()
        page.get_by_label("lr", exact=True).check()
        expect(page.locator('[data-key="config.lr"]').last).to_have_text("0.01")
        expect(page.locator('td[data-key="config.optim.name"]')).to_have_text("adamw")
        page.get_by_label("Tag").select_option("")
        page.get_by_role("button", name="lr").click()
        expect(page.locator('td[data-key="config.lr"]').first).to_have_text("0.1")


def test_a_query_that_means_nothing_says_why_and_keeps_the_list(opened, many):
    with opened(many, "", complaints="422") as page:
        expect(page.locator(".runs tbody tr")).to_have_count(200)
        page.locator("#filter").fill("colour:red")
        expect(page.get_by_role("alert")).to_contain_text("The search must ask for")
        expect(page.locator(".runs tbody tr")).to_have_count(200)
        page.locator("#filter").fill("tag:base")
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(page.locator(".runs tbody tr")).to_have_count(3)


def test_runs_are_tagged_archived_and_deleted_after_a_second_look(opened, service_url):
    for run in ("one", "two", "three"):
        Feed(service_url, run, ["fc.weight"], tags=["old"]).send([1], sigma=1.0)
    with opened(service_url, "") as page:
        names = page.locator(".run-name")
        expect(names).to_have_count(3)
        for run in ("one", "two"):
            page.get_by_label(f"Select {run}").check()
        page.get_by_role("button", name="Tag…").click()
        page.get_by_label("Tags to add").fill("sweep, 7 b")
        page.get_by_role("button", name="Add").click()
        expect(page.locator(".run-detail").filter(has_text="#sweep #7 b")).to_have_count(2)
        page.get_by_label("Select one").check()
        page.get_by_role("button", name="Archive…").click()
        expect(page.get_by_role("dialog")).to_contain_text("archived:yes")
        page.get_by_role("button", name="Archive", exact=True).click()
        expect(names).to_have_text(["three", "two"])
        page.locator("#filter").fill("archived:any tag:sweep")
        expect(names).to_have_text(["two", "one"])
        page.locator("#filter").fill("")
        page.get_by_label("Select three").check()
        page.get_by_role("button", name="Delete…").click()
        # A click too many deletes nothing.
        page.get_by_role("button", name="Delete", exact=True).click()
        expect(page.get_by_role("dialog")).to_be_visible()
        page.get_by_label("Type three to delete").fill("three")
        page.get_by_role("button", name="Delete", exact=True).click()
        expect(names).to_have_text(["two"])
    left = httpx.get(f"{service_url}/api/v1/runs", params={"q": "archived:any"}).json()["items"]
    assert [item["run"] for item in left] == ["two", "one"]
    assert left[0]["tags"] == ["old", "sweep", "7 b"]


def test_a_run_that_ended_in_nan_says_so_and_a_failed_one_reads_as_failed(opened, service_url):
    sigma = np.ones((20, 2))
    sigma[15:, 0] = np.nan
    feed = Feed(service_url, "burnt", ["a.weight", "b.weight"])
    feed.send(list(range(20)), sigma=sigma, threshold=2.0)
    feed.finish("failed")
    Feed(service_url, "later", ["a.weight"]).send([1], sigma=1.0, threshold=2.0)
    with opened(service_url, "") as page:
        first = page.locator(".runs tbody tr").first
        expect(first.locator(".run-name")).to_have_text("burnt")
        expect(first.locator(".ended")).to_have_text("ended in NaN")
        expect(first.locator(".ratio-number")).to_have_text("✕ not finite")
        first.get_by_role("link").click()
        expect(page.locator(".events")).to_contain_text("run failed")
        expect(page.locator(".events")).not_to_contain_text("run finished")


def test_a_critical_incident_is_never_behind_the_others(opened, service_url):
    """Thirty runs breach, one of them before all others with NaN."""
    Feed(service_url, "nan", ["a.weight"]).send([1, 2], sigma=[[1.0], [np.nan]], threshold=2.0)
    for i in range(30):
        Feed(service_url, f"b{i}", ["a.weight"]).send([1], sigma=3.0, threshold=2.0)
    with opened(service_url, "") as page:
        lines = page.locator(".open-incidents a")
        expect(lines).to_have_text([re.compile("nan: nonfinite"), re.compile("30 runs: breach")])
        lines.nth(1).click()
        expect(page.locator("#filter")).to_have_value("incident:warning")
        expect(page.locator(".runs tbody tr")).to_have_count(30)


def test_no_column_is_cut_at_1024_pixels(opened, many):
    with opened(many, "#/?q=run", viewport={"width": 1024, "height": 700}) as page:
        expect(page.locator(".runs tbody tr")).to_have_count(200)
        assert page.locator(".table-box").evaluate("box => box.scrollWidth - box.clientWidth") <= 0
        expect(page.get_by_role("button", name=f"Worst {SIGMA} / threshold")).to_be_visible()
