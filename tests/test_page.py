"""The page in a real headless Chromium, over a real service process with rows from the wire."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from feed import Feed
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from test_walk import planted_model

from snc_client import SNCallback
from snc_client.demo.service import free_port, serving

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
pytestmark = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason="needs Chromium: install the package chromium"
)

NAN, INF = float("nan"), float("inf")
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
HOSTILE_LAYERS = (
    '<img src=x onerror="alert(1)">',
    "</script><script>alert(1)</script>",
    "<b>bold</b> &lt;i&gt; $x$",
    "a/b%2F#c?d=e&f[q]",
)
# plotly.js sets one style attribute that the policy forbids; ours repeats it in its style sheet.
KNOWN_REPORT = re.compile(r"Applying inline style violates .*Content Security Policy")

Open = Callable[..., AbstractContextManager[Page]]


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[str]:
    """Yield the URL of a service that all tests of this file fill, each with runs of its own."""
    with serving(tmp_path_factory.mktemp("page") / "snc.db", free_port(0)) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser) -> Open:
    """Open an address; at the end, nothing may have left the origin, and the console is clean."""

    @contextmanager
    def open_page(url: str, address: str, complaints: str = "", **options) -> Iterator[Page]:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        context.set_default_timeout(15_000)
        said, asked = watch(context)
        page = context.new_page()
        page.goto(f"{url}/{address}")
        yield page
        context.close()
        foreign = [u for u in asked if not u.startswith((f"{url}/", "data:", "blob:"))]
        assert foreign == []
        allowed = re.compile(complaints) if complaints else None
        assert [s for s in said if not (allowed and allowed.search(s))] == []

    return open_page


def watch(context: BrowserContext) -> tuple[list[str], list[str]]:
    said: list[str] = []
    asked: list[str] = []

    def console(message) -> None:
        if message.type in ("error", "warning") and not KNOWN_REPORT.search(message.text):
            said.append(message.text)

    context.on("console", console)
    context.on("weberror", lambda error: said.append(str(error.error)))
    context.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    context.on("request", lambda request: asked.append(request.url))
    return said, asked


def wait_for_heatmap(page: Page, number: int = 1) -> None:
    expect(page.locator(".heatmap .plot:not([hidden]) .heatmaplayer image").first).to_be_attached()
    expect(page.locator(".heatmap .plot:not([hidden]) .main-svg:first-child")).to_have_count(number)


def heatmap_point(page: Page, layer: int, step: float) -> tuple[float, float]:
    """Return where on the screen a cell of the first heatmap is."""
    return tuple(
        page.locator(".heatmap .plot").first.evaluate(
            """(plot, [layer, step]) => {
                const { xaxis, yaxis } = plot._fullLayout;
                const box = plot.getBoundingClientRect();
                return [box.left + xaxis._offset + xaxis.l2p(step),
                        box.top + yaxis._offset + yaxis.l2p(layer)];
            }""",
            [layer, step],
        )
    )


def traces(page: Page, selector: str) -> list[dict]:
    return json.loads(
        page.locator(selector).first.evaluate(
            "plot => JSON.stringify(plot.data.map(t => ({type: t.type, mode: t.mode, x: t.x,"
            " y: t.y, yaxis: t.yaxis, symbol: t.marker?.symbol, dash: t.line?.dash})))"
        )
    )


def marks(page: Page, selector: str) -> set[str]:
    return {t["symbol"] for t in traces(page, selector) if "symbol" in t}


def eventually(page: Page, expression: str, value: object) -> None:
    """Wait until the page computes ``value``. (wait_for_function needs what the policy forbids.)"""
    for _ in range(100):
        if page.evaluate(expression) == value:
            return
        page.wait_for_timeout(50)
    assert page.evaluate(expression) == value


def layer_row(page: Page, layer: str):
    return page.locator(".layers tbody tr").filter(has=page.get_by_text(layer, exact=True))


# The first visit


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


@pytest.fixture(scope="module")
def planted(service) -> dict[str, float]:
    """Return the newest sigma of each layer of run ``planted``: 40 exact steps."""
    newest = {"fc1.weight": 1.375, "fc2.weight": 6.5, "head.weight": 0.03125}
    feed = Feed(service, "planted", list(newest), name="planted values", project="page")
    steps = np.arange(40)
    sigma = np.array(list(newest.values())) * (0.5 + steps / 78)[:, None]
    loss = 3.0 - steps / 20
    feed.send(
        steps.tolist(),
        sigma=sigma,
        sigma_upper=sigma * 1.25,
        threshold=[2.0, 5.0, 1.0],
        scale=1.0,
        scalars={"loss": loss, "step_seconds": 0.2, "callback_seconds": 0.003},
    )
    return newest


def test_planted_values_are_in_the_tables(opened, service, planted):
    with opened(service, "#/?q=planted+values") as page:
        row = page.locator(".runs tbody tr")
        expect(row).to_have_count(1)
        expect(row.locator(".ratio-number")).to_have_text("▲ 1.30")
        expect(row.locator(".worst-layer")).to_have_text("fc2.weight")
        expect(row.locator("[data-key=overhead]")).to_have_text("1.5 %")
        row.get_by_role("link").click()
        expect(layer_row(page, "fc2.weight").locator(".ratio-number")).to_have_text("▲ 1.30")
        expect(layer_row(page, "fc2.weight").locator("td")).to_have_text(
            ["▲ 1.30", "6.500", "8.125", "5.000", "1.000"]
        )
        expect(layer_row(page, "fc1.weight").locator("td").nth(1)).to_have_text("1.375")
        expect(layer_row(page, "head.weight").locator("td").nth(1)).to_have_text("0.03125")
        # The worst first.
        names = page.locator(".layers tbody .layer-name").all_inner_texts()
        assert names == ["fc2.weight", "fc1.weight", "head.weight"]
        expect(page.locator(".facts")).to_contain_text("Step39")


def test_planted_values_are_said_of_the_cell_under_the_pointer(opened, service, planted):
    with opened(service, "#/runs/planted") as page:
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
    opened, service, planted
):
    with opened(service, "#/runs/planted?layer=fc1.weight") as page:
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


def test_breaches_are_marked_by_shape_where_they_begin(opened, service, planted):
    with opened(service, "#/runs/planted") as page:
        wait_for_heatmap(page)
        marks = [t for t in traces(page, ".heatmap .plot") if t.get("symbol") == "triangle-up"]
        # sigma of fc2 is 6.5 * (0.5 + 21 / 78) = 5.0 at step 21, and above it from step 22 on.
        assert [t["x"] for t in marks] == [[22.5, 39.5, None]]
        assert [t["y"] for t in marks] == [[1, 1, None]]


def test_the_history_has_its_threshold_line_and_the_loss_beneath(opened, service, planted):
    with opened(service, "#/runs/planted?layer=fc2.weight") as page:
        expect(page.locator(".area-history .main-svg").first).to_be_attached()
        lines = traces(page, ".area-history .plot")
        by_axis = [t for t in lines if t["mode"] == "lines" and t["yaxis"] == "y"]
        assert [t["dash"] for t in by_axis] == ["solid", "dash"]
        assert by_axis[0]["y"][-1] == 6.5
        assert set(by_axis[1]["y"]) == {5.0}
        loss = next(t for t in lines if t["yaxis"] == "y2")
        assert loss["x"] == by_axis[0]["x"] == list(range(40))


def test_values_that_are_not_finite_have_marks_of_their_own(opened, service):
    feed = Feed(service, "broken", ["a.weight", "b.weight"], name="broken")
    sigma = np.ones((40, 2))
    sigma[20, 0], sigma[30:, 1] = NAN, INF
    feed.send(list(range(40)), sigma=sigma, threshold=2.0, scalars={"loss": [1.0] * 39 + [NAN]})
    with opened(service, "#/runs/broken?layer=a.weight&layer=b.weight") as page:
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


def test_a_value_between_two_gaps_is_drawn(opened, service):
    feed = Feed(service, "lonely", ["a.weight"])
    feed.send(list(range(60)), sigma=np.where(np.arange(60) % 2, NAN, 1.0)[:, None])
    with opened(service, "#/runs/lonely") as page:
        expect(page.locator(".area-history .main-svg").first).to_be_attached()
        dots = [
            t
            for t in traces(page, ".area-history .plot")
            if t["mode"] == "markers" and t["yaxis"] == "y"
        ]
        assert dots[0]["x"] == list(range(0, 60, 2))


def test_without_a_threshold_the_heatmap_shows_sigma(opened, service):
    Feed(service, "observed", ["a.weight"]).send([1, 2, 3], sigma=[[1.0], [1.5], [3.0]])
    with opened(service, "#/runs/observed") as page:
        wait_for_heatmap(page)
        colors = page.get_by_role("group", name="What the colors show")
        expect(colors.get_by_role("button", name=SIGMA, exact=True)).to_have_attribute(
            "aria-pressed", "true"
        )
        expect(colors.get_by_text(f"{SIGMA} / threshold")).to_be_hidden()
        page.mouse.move(*heatmap_point(page, 0, 3.5))
        expect(page.locator(".heatmap .readout")).to_have_text(f"a.weight · step 3 · {SIGMA} 3.000")


# Names


def test_hostile_names_stay_text_everywhere(opened, service):
    name = '<img src=x onerror="alert(2)"> {{7*7}}'
    feed = Feed(service, "hostile", HOSTILE_LAYERS, name=name, tags=["<u>"])
    feed.send([1, 2], sigma=[[1, 2, 3, 4]] * 2, threshold=2.5)
    with opened(service, "#/runs/hostile?layer=a%2Fb%252F%23c%3Fd%3De%26f%5Bq%5D") as page:
        wait_for_heatmap(page)
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        expect(page.locator(".legend-name")).to_have_text(HOSTILE_LAYERS[3])
        expect(page.locator(".layers tbody tr.is-selected .layer-name")).to_have_text(
            HOSTILE_LAYERS[3]
        )
        for layer in HOSTILE_LAYERS:
            expect(layer_row(page, layer)).to_have_count(1)
        labels = page.locator(".heatmap .ytick text").all_text_contents()
        assert "<b>bold</b> &lt;i&gt; $x$" in labels
        page.mouse.move(*heatmap_point(page, 0, 2.5))
        expect(page.locator(".heatmap .readout")).to_contain_text(HOSTILE_LAYERS[0])
        assert page.locator("main img, main script, main b, main i, main u").count() == 0
        page.goto(f"{service}/#/?q=7*7")
        expect(page.locator(".run-name")).to_have_text(name)
        page.goto(f"{service}/#/compare/hostile/planted")
        wait_for_heatmap(page, 2)
        expect(page.locator(".picture h3").first).to_have_text(name)
        assert page.locator("main img, main script, main b").count() == 0


@pytest.mark.parametrize("address", ["#/runs/%E0%A4%A", "#/nowhere", "#/runs/a/b", "#/runs/no-run"])
def test_an_address_that_leads_nowhere_says_so(opened, service, address):
    with opened(service, address, complaints="404") as page:
        expect(page.locator(".state h1")).to_have_text(re.compile("no such page|is not here"))
        page.get_by_role("link", name="All runs", exact=True).click()
        expect(page.get_by_role("heading", name="Runs")).to_be_visible()


# Many runs


def test_two_hundred_runs_are_listed_filtered_and_sorted(opened, tmp_path):
    with serving(tmp_path / "many.db", free_port(0)) as url:
        with httpx.Client(base_url=f"{url}/api/v1") as http:
            for i in range(200):
                body = {"run": f"r{i}", "name": f"run {i}", "project": "even" if i % 2 else "odd"}
                http.post("/runs", json=body).raise_for_status()
                batch = {"writer": "w", "seq": 0, "steps": [i], "layers": ["fc.weight"]}
                batch["metrics"] = {"sigma": [[(i * 7) % 200 / 100]], "threshold": [[1.0]]}
                http.post(f"/runs/r{i}/batches", json=batch).raise_for_status()
            http.post("/runs/r7/finish", json={"state": "failed"}).raise_for_status()
        with opened(url, "") as page:
            rows = page.locator(".runs tbody tr")
            expect(rows).to_have_count(200)
            expect(page.locator(".summary")).to_have_text("199 active · 1 failed")
            page.get_by_role("button", name=f"Worst {SIGMA} / threshold").click()
            expect(rows.first.locator(".ratio-number")).to_have_text("▲ 1.99")
            page.get_by_role("button", name=f"Worst {SIGMA} / threshold").click()
            expect(rows.first.locator(".run-name")).to_have_text("run 0")
            page.keyboard.press("/")
            page.keyboard.type("even run 7")
            expect(rows).to_have_count(sum("7" in str(i) for i in range(1, 200, 2)))
            page.get_by_label("State").select_option("failed")
            expect(rows).to_have_count(1)
            expect(rows.locator(".badge")).to_have_text("✕failed")
            # The address holds it all.
            page.reload()
            expect(rows).to_have_count(1)


# Side by side


@pytest.fixture(scope="module")
def pair(service) -> tuple[str, str]:
    """Return two runs of one model: one grows away from its threshold, one is held."""
    steps = np.arange(200)
    growth = np.exp(steps / 100)[:, None] * [1.0, 0.5]
    for run, sigma, loss in (
        ("free", growth, 2.0 + steps / 100),
        ("held", np.minimum(growth, 2.02), 2.0 - steps / 200),
    ):
        feed = Feed(service, run, ["query.weight", "key.weight"], project="page")
        scale = np.minimum(1, 2.0 / sigma) if run == "held" else 1.0
        feed.send(steps.tolist(), sigma=sigma, threshold=2.0, scale=scale, scalars={"loss": loss})
    return "free", "held"


def test_selected_runs_are_compared_side_by_side(opened, service, pair):
    with opened(service, "#/") as page:
        compare = page.locator("a.primary")
        expect(compare).not_to_have_attribute("href", re.compile(""))
        for run in pair:
            page.get_by_label(f"Compare {run}").check()
        expect(compare).to_have_text("Compare 2")
        compare.click()
        wait_for_heatmap(page, 2)
        assert page.url.endswith("#/compare/free/held")
        boxes = [box.bounding_box() for box in page.locator(".picture").all()]
        assert boxes[0]["y"] == boxes[1]["y"]
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
        ranges = page.evaluate(
            "[...document.querySelectorAll('.plot')].map(p => p.layout.xaxis.range.join())"
        )
        assert len(ranges) == 4
        assert len(set(ranges)) == 1
        # What the model goes on with: the one run far above its threshold, the other held at it.
        chosen = page.get_by_role("group", name="What the colors show")
        expect(chosen.locator("[aria-pressed=true]")).to_have_text("after the action")
        assert {"triangle-up"} == marks(page, ".picture:nth-child(1) .plot")
        assert {"diamond"} == marks(page, ".picture:nth-child(2) .plot")
        largest = page.locator(".versus tbody tr").filter(has_text="after the action")
        expect(largest.locator("td")).to_have_text(["3.66", "1.00"])
        loss = [t for t in traces(page, ".area-loss .plot") if t["mode"] == "lines"]
        assert [t["y"][-1] for t in loss] == [pytest.approx(3.99), pytest.approx(1.005)]
        numbers = page.locator(".versus tbody tr")
        expect(numbers.filter(has_text="Rescales").locator("td").first).to_have_text("0")
        expect(numbers.filter(has_text="Loss, newest").locator("td")).to_have_text(
            ["3.990", "1.005"]
        )
        page.get_by_label("Layer", exact=True).select_option("key.weight")
        expect(page.locator(".area-layer .readout")).to_contain_text("held: 2.020")


def test_a_comparison_waits_for_a_run_that_has_not_begun(opened, service):
    Feed(service, "early", ["fc.weight"]).send([1, 2], sigma=1.0, scalars={"loss": 1.0})
    with opened(service, "#/compare/early/late", complaints="404") as page:
        wait_for_heatmap(page)
        expect(page.locator(".picture").nth(1)).to_contain_text("This run is not here")
        Feed(service, "late", ["fc.weight"]).send([1, 2], sigma=2.0, scalars={"loss": 0.5})
        wait_for_heatmap(page, 2)
        expect(page.locator(".area-loss .readout")).to_contain_text("early: 1.000 · late: 0.5000")


# Live


def test_a_run_goes_on_before_the_eyes(opened, service):
    feed = Feed(service, "live", ["fc.weight"])
    feed.send([1, 2], sigma=1.0, threshold=2.0, scalars={"loss": 1.0})
    with opened(service, "#/runs/live") as page:
        wait_for_heatmap(page)
        page.evaluate("window.neverReloaded = true")
        feed.send([3, 4], sigma=[[1.5], [2.5]], threshold=2.0, scalars={"loss": 0.5})
        expect(layer_row(page, "fc.weight").locator(".ratio-number")).to_have_text("▲ 1.25")
        expect(page.locator(".facts")).to_contain_text("Step4")
        expect(page.locator(".events .event-rule").first).to_have_text("breach")
        expect(page.locator("#announcer")).to_have_text("This run: first breach.")
        expect(page.locator(".heatmap .readout")).to_contain_text("4 columns")
        feed.finish()
        expect(page.locator(".view-head .badge")).to_have_text("✓finished")
        expect(page.locator("#announcer")).to_have_text("This run is finished.")
        assert page.evaluate("window.neverReloaded")


def test_a_hidden_tab_asks_nothing_and_catches_up_when_seen_again(opened, service, planted):
    with opened(service, "#/runs/planted") as page:
        wait_for_heatmap(page)
        set_hidden(page, True)
        expect(page.locator("#connection")).to_have_text("paused while hidden")
        page.wait_for_load_state("networkidle")
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(2_500)  # more than two rounds of asking
        assert asked == []
        set_hidden(page, False)
        expect(page.locator("#connection")).to_have_text("live")
        assert asked


def set_hidden(page: Page, hidden: bool) -> None:
    page.evaluate(
        """hidden => {
            Object.defineProperty(document, 'hidden', { configurable: true, get: () => hidden });
            document.dispatchEvent(new Event('visibilitychange'));
        }""",
        hidden,
    )


def test_a_service_that_goes_away_is_seen_and_so_is_its_return(opened, tmp_path):
    store, port = tmp_path / "away.db", free_port(0)
    with serving(store, port) as url:
        Feed(url, "r", ["fc.weight"]).send([1], sigma=1.0)
        manager = opened(url, "#/runs/r", complaints="Failed to load resource")
        page = manager.__enter__()
        wait_for_heatmap(page)
    expect(page.locator("#connection")).to_contain_text("service not reached since")
    expect(page.locator("#announcer")).to_contain_text("may be old")
    expect(layer_row(page, "fc.weight")).to_be_visible()
    with serving(store, port):
        expect(page.locator("#connection")).to_have_text("live")
        expect(page.locator("#announcer")).to_have_text("The service is reached again.")
        expect(page.locator(".notice")).to_be_hidden()
        manager.__exit__(None, None, None)


def test_a_run_that_is_deleted_while_shown_leaves_a_sentence(opened, service):
    Feed(service, "doomed", ["fc.weight"]).send([1], sigma=1.0)
    with opened(service, "#/runs/doomed", complaints="404") as page:
        wait_for_heatmap(page)
        httpx.delete(f"{service}/api/v1/runs/doomed").raise_for_status()
        expect(page.locator(".state h1")).to_have_text("The run doomed is not here")


def test_tables_are_there_without_the_charts(opened, service, planted, browser):
    context = browser.new_context()
    context.route("**/plotly.js", lambda route: route.abort())
    page = context.new_page()
    page.goto(f"{service}/#/runs/planted")
    expect(layer_row(page, "fc2.weight").locator(".ratio-number")).to_have_text("▲ 1.30")
    expect(page.locator(".heatmap .chart-note")).to_have_text(
        "plotly.js could not be loaded: the tables hold the same numbers."
    )
    context.close()


# The policy


def test_a_threshold_changed_on_the_page_is_the_policy_in_force(opened, service):
    feed = Feed(service, "policy", ["fc1.weight", "fc2.weight", "head.weight"])
    feed.send([1], sigma=1.0, threshold=2.0)
    address = f"{service}/api/v1/runs/policy/policy"
    with opened(service, "#/runs/policy", complaints="412|422") as page:
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


# Moving about


def test_views_and_zooms_are_addresses_that_back_comes_back_from(opened, service, planted):
    with opened(service, "#/?q=planted") as page:
        page.get_by_role("link", name="planted values").click()
        wait_for_heatmap(page)
        page.get_by_label("First step shown").fill("10")
        page.get_by_label("Last step shown").fill("19")
        page.keyboard.press("Enter")
        expect(page.locator(".heatmap .readout")).to_contain_text("10 columns")
        assert page.url.endswith("#/runs/planted?from=10&to=19")
        zoomed = page.url
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        expect(page.locator(".heatmap .readout")).to_contain_text("40 columns")
        page.go_back()
        expect(page.locator(".heatmap .readout")).to_contain_text("10 columns")
        assert page.url == zoomed
        page.go_back()
        page.go_back()
        expect(page.locator("#filter")).to_have_value("planted")


def test_dragging_over_the_heatmap_zooms_every_chart_of_the_run(opened, service, planted):
    with opened(service, "#/runs/planted") as page:
        wait_for_heatmap(page)
        page.mouse.move(*heatmap_point(page, 1, 10.2))
        page.mouse.down()
        page.mouse.move(*heatmap_point(page, 1, 15.0), steps=3)
        page.mouse.move(*heatmap_point(page, 1, 20.2), steps=3)
        page.mouse.up()
        expect(page.locator(".heatmap .readout")).to_contain_text("columns")
        expect(page).to_have_url(re.compile(r"from=10&to=21$"))
        ranges = "[...document.querySelectorAll('.plot')].map(p => p.layout.xaxis.range)"
        eventually(page, ranges, [[10, 21], [10, 21]])


VIEWS = ("#/", "#/runs/planted", "#/compare/free/held")


@pytest.mark.parametrize("address", VIEWS)
def test_the_keyboard_reaches_everything_and_everything_has_a_name(
    opened, service, planted, pair, address
):
    with opened(service, address) as page:
        expect(page.locator("tbody tr").first).to_be_visible()
        if address != "#/":
            wait_for_heatmap(page, address.count("/") - 1)
        wanted = page.evaluate(
            """() => [...document.querySelectorAll('a[href],button,input,select,[tabindex="0"]')]
                .filter(e => e.checkVisibility() && !e.disabled)
                .map((e, i) => (e.dataset.stop = i, i)).length"""
        )
        reached = set()
        for _ in range(wanted + 5):
            page.keyboard.press("Tab")
            stop = page.evaluate("document.activeElement?.dataset.stop")
            reached.add(None if stop is None else int(stop))
        assert reached >= set(range(wanted))
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('[data-stop]')].filter(e =>
                !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length))
                .map(e => e.outerHTML)"""
        )
        assert nameless == []


@pytest.mark.parametrize("address", VIEWS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_every_view_without_scrolling_sideways(
    opened, service, planted, pair, address, scheme
):
    options = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme}
    with opened(service, address, **options) as page:
        expect(page.locator("tbody tr").first).to_be_visible()
        if address != "#/":
            wait_for_heatmap(page, address.count("/") - 1)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(245, 246, 248)", "dark": "rgb(14, 17, 22)"}[scheme]


def test_the_theme_can_be_chosen_and_stays(opened, service, planted):
    with opened(service, "#/runs/planted", color_scheme="light") as page:
        wait_for_heatmap(page)
        ink = "document.querySelector('.plot').layout.font.color"
        light = page.evaluate(ink)
        button = page.get_by_role("button", name="Theme")
        button.click()
        button.click()
        expect(button).to_have_text("Theme: dark")
        dark = page.evaluate("getComputedStyle(document.body).getPropertyValue('--dim').trim()")
        assert dark != light
        eventually(page, ink, dark)
        page.reload()
        expect(button).to_have_text("Theme: dark")


def test_singular_values_planted_in_weights_are_on_the_page(service, opened):
    model, planted = planted_model()
    with SNCallback(model, threshold=10.0, action="observe", url=service, run="from-weights") as c:
        for _ in range(10):
            c.step()
    with opened(service, "#/runs/from-weights") as page:
        for layer, largest in planted.items():
            row = page.get_by_role("row").filter(has_text=layer)
            expect(row).to_contain_text(f"{largest:.2f}")
