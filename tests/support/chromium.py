"""A real headless Chromium over a real service process: its fixtures, and how tests read a page."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
from feed import Feed
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

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
needs_chromium = pytest.mark.skipif(
    not Path(CHROMIUM).exists(), reason="needs Chromium: install the package chromium"
)
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"

# A busy machine takes seconds to draw.
expect.set_options(timeout=15_000)

Open = Callable[..., AbstractContextManager[Page]]


@pytest.fixture(scope="module")
def page_service(tmp_path_factory) -> Iterator[str]:
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
        if message.type in ("error", "warning"):
            said.append(message.text)

    context.on("console", console)
    context.on("weberror", lambda error: said.append(str(error.error)))
    context.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    context.on("request", lambda request: asked.append(request.url))
    return said, asked


def wait_for_heatmap(page: Page, number: int = 1) -> None:
    drawn = page.locator(".heatmap .plot:not([hidden]) canvas")
    expect(drawn).to_have_count(number)
    for place in range(number):
        expect(drawn.nth(place)).to_have_attribute("height", re.compile(r"^[1-9]\d\d"))


def heatmap_point(page: Page, layer: int, step: float) -> tuple[float, float]:
    """Return where on the screen a cell of the first heatmap is."""
    return tuple(
        page.locator(".heatmap .plot").first.evaluate(
            """(plot, [layer, step]) => {
                const { xaxis, yaxis } = plot.figure;
                const box = plot.getBoundingClientRect();
                return [box.left + xaxis.toPixel(step), box.top + yaxis.toPixel(layer)];
            }""",
            [layer, step],
        )
    )


def traces(page: Page, selector: str) -> list[dict]:
    """Return what the first figure of ``selector`` draws, once it has drawn."""
    eventually(page, f"Boolean(document.querySelector({selector!r})?.figure)", True)
    return json.loads(
        page.locator(selector).first.evaluate(
            "plot => JSON.stringify(plot.figure.data.map(t => ({type: t.type, mode: t.mode,"
            " x: t.x, y: t.y, yaxis: t.yaxis ?? 'y', symbol: t.marker?.symbol,"
            " dash: t.line?.dash})))"
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


@pytest.fixture(scope="module")
def planted(page_service) -> dict[str, float]:
    """Return the newest sigma of each layer of run ``planted``: 40 exact steps."""
    newest = {"fc1.weight": 1.375, "fc2.weight": 6.5, "head.weight": 0.03125}
    feed = Feed(page_service, "planted", list(newest), name="planted values", project="page")
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


@pytest.fixture(scope="module")
def pair(page_service) -> tuple[str, str]:
    """Return two runs of one model: one grows away from its threshold, one is held."""
    steps = np.arange(200)
    growth = np.exp(steps / 100)[:, None] * [1.0, 0.5]
    for run, sigma, loss in (
        ("free", growth, 2.0 + steps / 100),
        ("held", np.minimum(growth, 2.02), 2.0 - steps / 200),
    ):
        feed = Feed(page_service, run, ["query.weight", "key.weight"], project="page")
        scale = np.minimum(1, 2.0 / sigma) if run == "held" else 1.0
        feed.send(steps.tolist(), sigma=sigma, threshold=2.0, scale=scale, scalars={"loss": loss})
    return "free", "held"
