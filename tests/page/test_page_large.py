"""Large models on the page: rows that layers share, search over layers, experts, exports."""

import re

import httpx
import numpy as np
import pytest
from chromium import (
    eventually,
    heatmap_point,
    layer_row,
    needs_chromium,
    traces,
    wait_for_heatmap,
)
from feed import Feed
from playwright.sync_api import expect

pytestmark = needs_chromium
LAYERS = 1_100  # rows of three layers, as the page asks for 500 rows


@pytest.fixture(scope="module")
def large(page_service) -> list[str]:
    """Send the run ``large``: one layer, in the middle of its row, is above its threshold."""
    names = [
        f"model.layers.{i // 2}.{('qkv', 'mlp')[i % 2]}.weight.original0" for i in range(LAYERS)
    ]
    sigma = np.ones((20, LAYERS))
    sigma[10:, 601] = 5.0
    feed = Feed(page_service, "large", names)
    feed.send(list(range(20)), sigma=sigma, threshold=2.0, scalars={"loss": 1.0})
    return names


def test_a_shared_row_names_its_worst_layer_and_a_click_expands_it(opened, page_service, large):
    with opened(page_service, "#/runs/large") as page:
        wait_for_heatmap(page)
        readout = page.locator(".heatmap .readout")
        expect(readout).to_contain_text("1,100 layers in 367 rows")
        page.mouse.move(*heatmap_point(page, 200, 15.5))
        expect(readout).to_contain_text(f"{large[601]}, the worst of 3 layers · step 15")
        expect(readout).to_contain_text("ratio 2.50 · breach")
        page.mouse.click(*heatmap_point(page, 200, 15.5))
        expect(page).to_have_url(re.compile("rows=600-602"))
        expect(page.locator(".layer-search")).to_contain_text("rows 601 to 603 of 1,100")
        labels = page.locator(".heatmap .plot").evaluate("p => p.figure.layout.yaxis.ticktext")
        assert labels == ["300.qkv", "300.mlp", "301.qkv"]
        # A row of one layer draws its history.
        page.mouse.click(*heatmap_point(page, 0, 15.5))
        expect(page.locator(".legend-name").last).to_have_text(large[600])
        page.mouse.move(0, 0)
        page.keyboard.press("Escape")
        expect(readout).to_contain_text("1,100 layers in 367 rows")
        page.go_back()
        expect(page.locator(".layer-search")).to_contain_text("rows 601 to 603")


def test_dragging_down_the_heatmap_chooses_its_rows(opened, page_service, large):
    with opened(page_service, "#/runs/large") as page:
        wait_for_heatmap(page)
        page.mouse.move(*heatmap_point(page, 100, 10.5))
        page.mouse.down()
        page.mouse.move(*heatmap_point(page, 150, 10.5), steps=3)
        page.mouse.up()
        expect(page).to_have_url(re.compile(r"rows=300-45\d$"))


@pytest.mark.parametrize(("find", "number"), [("*layers.3?.qkv*", 10), ("LAYERS.30.", 2)])
def test_a_search_filters_heatmap_table_and_charts(opened, page_service, large, find, number):
    with opened(page_service, "#/runs/large") as page:
        wait_for_heatmap(page)
        page.keyboard.press("/")
        page.keyboard.type(find)
        expect(page.locator(".layer-search")).to_contain_text(f"{number} layers match")
        expect(page.locator(".heatmap .readout")).to_contain_text(
            f"{number} layers \N{MULTIPLICATION SIGN}"
        )
        expect(page.locator(".layers tbody tr")).to_have_count(number)
        names = page.locator(".legend-name").all_inner_texts()
        assert names
        assert all("layers.3" in name for name in names)
        page.locator("#filter").fill("no such layer")
        expect(page.locator(".heatmap .chart-note")).to_have_text("No layer matches the search.")


def test_an_unknown_layer_does_not_blank_the_others(opened, page_service, large):
    address = f"#/runs/large?layer={large[601]}&layer=not.there"
    with opened(page_service, address) as page:
        wait_for_heatmap(page)
        expect(page.locator(".legend-name")).to_have_text([large[601], "not.there"])
        expect(page.locator(".legend-value").first).to_contain_text("5.000")
        lines = [t for t in traces(page, ".area-history .plot") if t["mode"] == "lines"]
        assert lines[0]["y"][-1] == 5.0


def test_experts_are_one_row_that_opens_to_all_of_them(opened, page_service):
    names = ["gate.weight"] + [f"moe.experts.{i}.{part}" for i in range(8) for part in ("w1", "w2")]
    sigma = np.ones((4, len(names)))
    sigma[2:, names.index("moe.experts.5.w1")] = 3.0
    Feed(page_service, "moe", names).send([0, 1, 2, 3], sigma=sigma, threshold=2.0)
    with opened(page_service, "#/runs/moe") as page:
        wait_for_heatmap(page)
        readout = page.locator(".heatmap .readout")
        expect(readout).to_contain_text("17 layers in 3 rows")
        page.mouse.move(*heatmap_point(page, 1, 2.5))
        expect(readout).to_contain_text("moe.experts.5.w1, the worst of 8 layers")
        page.mouse.click(*heatmap_point(page, 1, 2.5))
        page.mouse.move(0, 0)
        expect(readout).to_contain_text(re.compile(r"^8 layers \W"))
        expect(page.locator("#filter")).to_have_value("moe.experts.*.w1")
        expect(layer_row(page, "moe.experts.5.w1")).to_be_visible()


def test_what_is_drawn_is_saved_as_csv_and_as_a_picture(opened, page_service, planted):
    with opened(page_service, "#/runs/planted?layer=fc2.weight") as page:
        wait_for_heatmap(page)
        box = page.locator(".area-history .exports")
        with page.expect_download() as saved:
            box.get_by_text("CSV").click()
        lines = saved.value.path().read_text().splitlines()
        assert lines[0] == "line,step,mean,min,max"
        assert "fc2.weight,39,6.5,6.5,6.5" in lines
        assert "fc2.weight threshold,39,5,5,5" in lines
        assert sum(line.startswith("loss,") for line in lines) == 40
        with page.expect_download() as saved:
            page.locator(".area-heatmap .exports").get_by_text("CSV").click()
        assert "fc2.weight,39,1.3" in saved.value.path().read_text().splitlines()
        with page.expect_download() as saved:
            box.get_by_text("PNG").click()
        assert saved.value.path().read_bytes().startswith(b"\x89PNG")


def test_a_breach_from_before_the_window_does_not_look_as_if_it_began_there(
    opened, page_service, planted
):
    with opened(page_service, "#/runs/planted?from=30&to=39") as page:
        wait_for_heatmap(page)
        marks = {t["symbol"] for t in traces(page, ".heatmap .plot") if "symbol" in t}
        assert marks == {"triangle-left"}
        page.mouse.move(*heatmap_point(page, 1, 30.5))
        expect(page.locator(".heatmap .readout")).to_contain_text("already at the first step shown")


def test_many_runs_are_compared_with_what_differs_in_their_configs(opened, page_service):
    runs = [f"many{i}" for i in range(9)]
    for i, run in enumerate(runs):
        config = {"lr": 0.1 * (i + 1), "optim": {"name": "adamw"}}
        feed = Feed(page_service, run, ["a.weight", "b.weight"], config=config)
        feed.send([0, 1, 2], sigma=1.0 + i / 10, threshold=2.0, scalars={"loss": 1.0})
    with opened(page_service, f"#/compare/{'/'.join(runs)}") as page:
        wait_for_heatmap(page, 9)
        rows = page.locator(".versus tbody tr.differs")
        expect(rows).to_have_count(1)  # what all have in common is left out
        expect(rows.locator("th")).to_have_text("config.lr")
        expect(rows.locator("td").first).to_have_text("0.1")
        boxes = [box.bounding_box() for box in page.locator(".picture").all()]
        assert len({box["y"] for box in boxes}) <= 3  # small multiples, several in a line


def test_a_run_is_noted_marked_and_acknowledged_on_its_page(opened, page_service):
    sigma = np.ones((20, 1))
    sigma[15:] = 3.0
    feed = Feed(page_service, "bad", ["a.weight"], config={"lr": 0.5, "deep": {"x": [1, 2]}})
    feed.send(list(range(20)), sigma=sigma, threshold=2.0, scalars={"loss": 1.0, "tokens": 5.0})
    feed.finish()
    with opened(page_service, "#/runs/bad") as page:
        wait_for_heatmap(page)
        verdict = page.locator(".verdict")
        expect(verdict).to_contain_text("ended in breach at step 19: a.weight is above")
        config = page.locator(".config-list")
        expect(config).to_contain_text("lr0.5")
        expect(config).to_contain_text("deep.x[1,2]")
        page.locator(".view-head").get_by_role("button", name="Edit…").click()
        page.get_by_label("Name").fill("the bad one")
        page.get_by_label("Note").fill("diverged\ntry a smaller rate")
        page.get_by_role("dialog").get_by_role("button", name="Save").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("the bad one")
        expect(page.locator(".note")).to_have_text("diverged\ntry a smaller rate")
        page.get_by_role("button", name="Mark a change…").click()
        page.get_by_label("Step", exact=True).fill("12")
        page.get_by_label("What changes").fill("new data")
        page.get_by_role("button", name="Mark", exact=True).click()
        expect(page.locator(".area-about .order-layer")).to_have_text("new data")
        verdict.get_by_role("button", name="Acknowledge").click()
        expect(verdict).to_contain_text("Acknowledged")
        expect(verdict.get_by_role("button")).to_be_hidden()
    found = httpx.get(f"{page_service}/api/v1/runs/bad").json()
    assert found["name"] == "the bad one"
    assert found["acknowledged_at"] is not None


def test_the_history_follows_the_layer_that_fails_now_over_one_stream(opened, page_service):
    names = [f"l{i}.weight" for i in range(8)]
    feed = Feed(page_service, "follow", names)
    sigma = np.linspace(0.9, 0.2, 8)
    feed.send([0, 1], sigma=sigma, threshold=1.0)
    with opened(page_service, "#/runs/follow") as page:
        wait_for_heatmap(page)
        expect(page.locator(".legend-name")).to_have_text(names[:3])
        feed.send([2], sigma=sigma, threshold=1.0)
        expect(page.locator(".facts")).to_contain_text("Step2")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        sigma[6] = 4.0
        feed.send([3, 4], sigma=sigma, threshold=1.0)
        expect(page.locator(".legend-name").first).to_have_text(names[6])
        tables = [
            url for url in asked if re.search(r"/follow(/layers|/events|/policy)?(\?|$)", url)
        ]
        assert len(tables) <= 4  # at most one look of those that come every 20 seconds


def test_the_scalar_below_and_the_axis_can_be_chosen(opened, page_service):
    feed = Feed(page_service, "axes", ["a.weight"])
    steps = np.arange(50)
    scalars = {"loss": 1 + steps % 2, "lr": 0.001, "tokens": steps * 4096, "step_seconds": 2.0}
    feed.send(steps.tolist(), sigma=1.0, scalars=scalars)
    with opened(page_service, "#/runs/axes") as page:
        wait_for_heatmap(page)
        page.get_by_label("Scalar below").select_option("lr")
        expect(page).to_have_url(re.compile("scalar=lr"))
        page.get_by_label("Scalar below").select_option("loss")
        page.get_by_label("Smoothing").select_option("0.9")
        page.get_by_label("Axis").select_option("tokens")
        expect(page).to_have_url(re.compile("axis=tokens"))
        title = "document.querySelector('.area-history .plot').figure.layout.xaxis.title"
        eventually(page, title, "tokens")
        loss = next(t for t in traces(page, ".area-history .plot") if t["yaxis"] == "y2")
        assert max(loss["y"][10:]) - min(loss["y"][10:]) < 0.15  # of 1, 2, 1, 2, ...
