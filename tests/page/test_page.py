"""What the page says of known values, in a real Chromium over a real service process."""

import re
import shlex

import httpx
import numpy as np
import pytest
from chromium import (
    SIGMA,
    heatmap_point,
    layer_row,
    needs_chromium,
    traces,
    wait_for_heatmap,
)
from feed import Feed
from playwright.sync_api import expect
from test_walk import planted_model

from snc_client import SNCallback
from snc_service.wire import ABSENT

pytestmark = needs_chromium
NAN, INF = float("nan"), float("inf")
HOSTILE_LAYERS = (
    '<img src=x onerror="alert(1)">',
    "</script><script>alert(1)</script>",
    "<b>bold</b> &lt;i&gt; $x$",
    "a/b%2F#c?d=e&f[q]",
)


def test_an_empty_service_shows_two_lines_and_a_curl_that_works(opened, service_url):
    with opened(service_url, "") as page:
        expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
        before, inside, shell = page.locator("pre code").all_inner_texts()
        assert before.splitlines()[0] == "from snc_client import SNCallback"
        assert f'url="{service_url}"' in before
        assert inside == "callback.step(loss=loss)"
        page.evaluate("window.neverReloaded = true")
        for line in shell.splitlines():
            send_as_curl(line)
        # Without a reload, the run is there.
        expect(page.get_by_role("link", name="hello")).to_be_visible()
        expect(page.locator("td[data-key=last_step]")).to_have_text("2")
        assert page.evaluate("window.neverReloaded")


def send_as_curl(line: str) -> None:
    program, url, *options = shlex.split(line)
    assert program == "curl"
    assert options[::2] == ["-H", "-d"]
    name, _, value = options[1].partition(": ")
    httpx.post(url, headers={name: value}, content=options[3]).raise_for_status()


# Values


def test_planted_values_are_in_the_tables(opened, page_service, planted):
    with opened(page_service, "#/?q=planted+values&column=overhead") as page:
        row = page.locator(".runs tbody tr")
        expect(row).to_have_count(1)
        expect(row.locator(".ratio-number")).to_have_text("▲ 1.30")
        expect(row.locator(".worst-layer")).to_have_text("fc2.weight")
        expect(row.locator("[data-key=overhead]")).to_have_text("1.5 %")
        row.get_by_role("link").click()
        expect(layer_row(page, "fc2.weight").locator(".ratio-number")).to_have_text("▲ 1.30")
        expect(layer_row(page, "fc2.weight").locator("td:visible")).to_have_text(
            ["▲ 1.30", "6.500", "8.125", "5.000", "1.000"]
        )
        expect(layer_row(page, "fc1.weight").locator("td").nth(1)).to_have_text("1.375")
        expect(layer_row(page, "head.weight").locator("td").nth(1)).to_have_text("0.03125")
        # The worst first.
        names = page.locator(".layers tbody .layer-name").all_inner_texts()
        assert names == ["fc2.weight", "fc1.weight", "head.weight"]
        expect(page.locator(".facts")).to_contain_text("Step39")


def test_planted_values_are_said_of_the_cell_under_the_pointer(opened, page_service, planted):
    with opened(page_service, "#/runs/planted") as page:
        wait_for_heatmap(page)
        page.mouse.move(*heatmap_point(page, 1, 39.5))
        readout = page.locator(".heatmap .readout")
        expect(readout).to_have_text(
            f"fc2.weight · step 39 · {SIGMA} 6.500 · threshold 5.000 · ratio 1.30 · breach"
        )
        expect(page.locator(".legend-step")).to_have_text("step 39 · loss 1.050")
        page.mouse.move(*heatmap_point(page, 0, 0.5))
        expect(readout).to_have_text(
            f"fc1.weight · step 0 · {SIGMA} 0.6875 · threshold 2.000 · ratio 0.34"
        )
        # The history follows the same step, in the legend.
        expect(page.locator(".legend li").filter(has_text="fc1.weight")).to_contain_text(
            f"{SIGMA} 0.6875"
        )


def test_the_heatmap_is_read_with_the_keyboard_and_draws_the_layer_at_enter(
    opened, page_service, planted
):
    with opened(page_service, "#/runs/planted?layer=fc1.weight") as page:
        wait_for_heatmap(page)
        page.locator(".heatmap .plot").focus()
        for key in ("ArrowRight", "ArrowDown", "ArrowDown", "ArrowLeft"):
            page.keyboard.press(key)
        expect(page.locator(".heatmap .readout")).to_contain_text(
            f"head.weight · step 38 · {SIGMA} 0.03"
        )
        page.keyboard.press("Enter")
        expect(page.locator(".legend-name")).to_have_text(["fc1.weight", "head.weight"])
        assert page.url.endswith("layer=fc1.weight&layer=head.weight")


def test_breaches_are_marked_by_shape_where_they_begin(opened, page_service, planted):
    with opened(page_service, "#/runs/planted") as page:
        wait_for_heatmap(page)
        marks = [t for t in traces(page, ".heatmap .plot") if t.get("symbol") == "triangle-up"]
        # sigma of fc2 is 6.5 * (0.5 + 21 / 78) = 5.0 at step 21, and above it from step 22 on.
        assert [t["x"] for t in marks] == [[22.5, 39.5, None]]
        assert [t["y"] for t in marks] == [[1, 1, None]]


def test_the_history_has_its_threshold_line_and_the_loss_beneath(opened, page_service, planted):
    with opened(page_service, "#/runs/planted?layer=fc2.weight") as page:
        lines = traces(page, ".area-history .plot")
        by_axis = [t for t in lines if t["mode"] == "lines" and t["yaxis"] == "y"]
        assert [t["dash"] for t in by_axis] == ["solid", "dash"]
        assert by_axis[0]["y"][-1] == 6.5
        assert set(by_axis[1]["y"]) == {5.0}
        loss = next(t for t in lines if t["yaxis"] == "y2")
        assert loss["x"] == by_axis[0]["x"] == list(range(40))


def test_values_that_are_not_finite_have_marks_of_their_own(opened, page_service):
    feed = Feed(page_service, "broken", ["a.weight", "b.weight"], name="broken")
    sigma = np.ones((40, 2))
    sigma[20, 0], sigma[30:, 1] = NAN, INF
    feed.send(list(range(40)), sigma=sigma, threshold=2.0, scalars={"loss": [1.0] * 39 + [NAN]})
    with opened(page_service, "#/runs/broken?layer=a.weight&layer=b.weight") as page:
        wait_for_heatmap(page)
        crosses = [t for t in traces(page, ".heatmap .plot") if t.get("symbol") == "x"]
        assert crosses[0]["x"] == [20.5, 20.5, None, 30.5, 39.5, None]
        rail = [t for t in traces(page, ".area-history .plot") if t["yaxis"] == "y9"]
        assert rail[-1]["x"] == [20, 30, 39]
        expect(layer_row(page, "b.weight").locator(".ratio-number")).to_have_text("✕ not finite")
        expect(page.locator(".facts")).to_contain_text("✕ 1layers")
        page.mouse.move(*heatmap_point(page, 0, 20.5))
        expect(page.locator(".heatmap .readout")).to_have_text("a.weight · step 20 · not finite")
        expect(page.locator(".events")).to_contain_text("nonfinite")


def test_a_value_between_two_gaps_is_drawn(opened, page_service):
    feed = Feed(page_service, "lonely", ["a.weight"])
    feed.send(list(range(60)), sigma=np.where(np.arange(60) % 2, NAN, 1.0)[:, None])
    with opened(page_service, "#/runs/lonely") as page:
        dots = [
            t
            for t in traces(page, ".area-history .plot")
            if t["mode"] == "markers" and t["yaxis"] == "y"
        ]
        assert dots[0]["x"] == list(range(0, 60, 2))


def test_a_layer_that_waits_for_its_turn_keeps_its_value_but_not_for_long(opened, page_service):
    """The second layer is measured at every fifth step, and not at all from 60 to 139."""
    steps = np.arange(200)
    sigma = np.stack([np.ones(200), 1 + steps / 100], axis=1).astype(np.float32)
    gone = (steps % 5 > 0) | ((steps >= 60) & (steps < 140))
    sigma[gone, 1] = ABSENT
    Feed(page_service, "turns", ["a.weight", "b.weight"]).send(steps.tolist(), sigma=sigma)
    with opened(page_service, "#/runs/turns?layer=b.weight&layer=a.weight") as page:
        wait_for_heatmap(page)
        cells = page.locator(".heatmap .plot").first.evaluate(
            """plot => {
                const { places, rows } = plot.figure.data[0];
                const columns = places.length / rows;
                return [...places.slice(columns, 2 * columns)].map((at) => (at < 0 ? null : at));
            }"""
        )
        assert [i for i, cell in enumerate(cells) if cell is None] == list(range(106, 140))
        page.mouse.move(*heatmap_point(page, 1, 13.5))
        expect(page.locator(".heatmap .readout")).to_have_text(
            f"b.weight · step 13 · {SIGMA} 1.100 of step 10"
        )
        expect(page.locator(".legend-value").first).to_have_text(f"{SIGMA} 1.100")
        line, _ = [
            t
            for t in traces(page, ".area-history .plot")
            if t["mode"] == "lines" and t["yaxis"] == "y"
        ]
        there = [(x, y) for x, y in zip(line["x"], line["y"], strict=True) if y is not None]
        assert [x for x, _ in there] == [*range(0, 60, 5), *range(140, 200, 5)]
        # The long silence breaks the line, the short waits do not.
        assert [x for x, y in zip(line["x"], line["y"], strict=True) if y is None] == [56]


def test_without_a_threshold_the_heatmap_shows_sigma(opened, page_service):
    Feed(page_service, "observed", ["a.weight"]).send([1, 2, 3], sigma=[[1.0], [1.5], [3.0]])
    with opened(page_service, "#/runs/observed") as page:
        wait_for_heatmap(page)
        colors = page.get_by_role("group", name="What the colors show")
        expect(colors.get_by_role("button", name=SIGMA, exact=True)).to_have_attribute(
            "aria-pressed", "true"
        )
        expect(colors.get_by_text(f"{SIGMA} / threshold")).to_be_hidden()
        page.mouse.move(*heatmap_point(page, 0, 3.5))
        expect(page.locator(".heatmap .readout")).to_have_text(f"a.weight · step 3 · {SIGMA} 3.000")


# Names


def test_hostile_names_stay_text_everywhere(opened, page_service, planted):
    name = '<img src=x onerror="alert(2)"> {{7*7}}'
    feed = Feed(page_service, "hostile", HOSTILE_LAYERS, name=name, tags=["<u>"])
    feed.send([1, 2], sigma=[[1, 2, 3, 4]] * 2, threshold=2.5)
    with opened(page_service, "#/runs/hostile?layer=a%2Fb%252F%23c%3Fd%3De%26f%5Bq%5D") as page:
        wait_for_heatmap(page)
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        expect(page.locator(".legend-name")).to_have_text(HOSTILE_LAYERS[3])
        expect(page.locator(".layers tbody tr.is-selected .layer-name")).to_have_text(
            HOSTILE_LAYERS[3]
        )
        for layer in HOSTILE_LAYERS:
            expect(layer_row(page, layer)).to_have_count(1)
        axis = "plot => plot.figure.layout.yaxis.ticktext"
        labels = page.locator(".heatmap .plot").evaluate(axis)
        assert "<b>bold</b> &lt;i&gt; $x$" in labels
        page.mouse.move(*heatmap_point(page, 0, 2.5))
        expect(page.locator(".heatmap .readout")).to_contain_text(HOSTILE_LAYERS[0])
        assert page.locator("main img, main script, main b, main i, main u").count() == 0
        page.goto(f"{page_service}/#/?q=7*7")
        expect(page.locator(".run-name")).to_have_text(name)
        page.goto(f"{page_service}/#/compare/hostile/planted")
        wait_for_heatmap(page, 2)
        expect(page.locator(".picture h3").first).to_have_text(name)
        assert page.locator("main img, main script, main b").count() == 0


@pytest.mark.parametrize("address", ["#/runs/%E0%A4%A", "#/nowhere", "#/runs/a/b", "#/runs/no-run"])
def test_an_address_that_leads_nowhere_says_so(opened, page_service, address):
    with opened(page_service, address, complaints="404") as page:
        expect(page.locator(".state h1")).to_have_text(re.compile("no such page|is not here"))
        page.get_by_role("link", name="All runs", exact=True).click()
        expect(page.get_by_role("heading", name="Runs")).to_be_visible()


# The policy


def test_a_threshold_changed_on_the_page_is_the_policy_in_force(opened, page_service):
    feed = Feed(page_service, "policy", ["fc1.weight", "fc2.weight", "head.weight"])
    feed.send([1], sigma=1.0, threshold=2.0)
    address = f"{page_service}/api/v1/runs/policy/policy"
    with opened(page_service, "#/runs/policy", complaints="412|422") as page:
        wait_for_heatmap(page)
        page.get_by_role("button", name="Add an entry").click()
        page.get_by_label("Layers", exact=True).fill("fc*")
        page.get_by_label("Threshold").fill("2.5")
        expect(page.locator(".matched")).to_have_text("2 layers")
        page.get_by_role("button", name="Save").click()
        expect(page.locator(".area-policy .hint").first).to_contain_text("Version 1")
        saved = httpx.get(address).json()
        entry = {"pattern": "fc*", "threshold": 2.5, "action": "rescale"}
        assert saved["policy"] == {"entries": [entry]}
        # What the service refuses is said beside the form.
        page.get_by_label("Threshold").fill("-1")
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("alert")).to_contain_text("number > 0")
        # Somebody else is faster.
        page.get_by_label("Threshold").fill("3x init")
        httpx.put(address, json={"entries": []}).raise_for_status()
        page.get_by_role("button", name="Save").click()
        expect(page.get_by_role("alert")).to_contain_text("Somebody else changed the policy")
        assert httpx.get(address).json()["policy"] == {"entries": []}


def test_singular_values_planted_in_weights_are_on_the_page(page_service, opened):
    model, planted = planted_model()
    with SNCallback(
        model, threshold=10.0, action="observe", url=page_service, run="from-weights"
    ) as c:
        for _ in range(10):
            c.step()
    with opened(page_service, "#/runs/from-weights") as page:
        for layer, largest in planted.items():
            row = page.get_by_role("row").filter(has_text=layer)
            expect(row).to_contain_text(f"{largest:.2f}")
