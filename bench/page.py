"""Main-thread work of the page on a large run, in a headless Chromium.

    python bench/page.py [--layers 1000] [--steps 20000] [--rounds 5]

It starts a service on an embedded store, sends a run with sigma and threshold of every layer at
every step, and opens its page. Chromium reports the CPU time of all tasks of the main thread
(`TaskDuration` in thread ticks): script, layout, painting, parsing. Waiting is not in it.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import CDPSession, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from feed import Feed  # noqa: E402  (from the folder above)

from snc_client.demo.service import free_port, serving  # noqa: E402

PARTS = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down", "norm")
DRAWN = "document.querySelector('.heatmap .plot')?.figure?.data[0]?.edges?.[0] ?? -1"
SAID = "document.querySelector('.layer-search').textContent"
BATCH = 100


def fill(url: str, layers: int, steps: int) -> None:
    """Send the run ``large``: every layer grows a little, and two of them without end."""
    names = [
        f"model.layers.{i // len(PARTS)}.{PARTS[i % len(PARTS)]}.weight" for i in range(layers)
    ]
    feed = Feed(url, "large", names, config={"lr": 0.001})
    rng = np.random.default_rng(0)
    base = 1 + rng.random(layers)
    for start in range(0, steps, BATCH):
        at = np.arange(start, min(start + BATCH, steps))
        sigma = base * (1 + 0.2 * at[:, None] / steps) + 0.01 * rng.standard_normal(
            (len(at), layers)
        )
        sigma[:, 7] += np.exp(np.minimum((at - 0.8 * steps) / (0.03 * steps), 3))
        feed.send(at.tolist(), sigma=sigma, threshold=3.0, scalars={"loss": 4 / (1 + at / 500)})
    feed.finish()


def work(session: CDPSession) -> float:
    """Return the seconds that the main thread has worked."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return next(m["value"] for m in metrics if m["name"] == "TaskDuration")


def until(page: Page, expression: str) -> None:
    for _ in range(2_000):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise TimeoutError(expression)


def measure(url: str, steps: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of main-thread work of each action, once per round."""
    found: dict[str, list[float]] = {"first paint": [], "zoom": [], "search": [], "rows": []}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"]
        )
        for _ in range(rounds):
            context = browser.new_context(viewport={"width": 1280, "height": 900})
            page = context.new_page()
            session = context.new_cdp_session(page)
            session.send("Performance.enable", {"timeDomain": "threadTicks"})
            page.goto("about:blank")
            before = work(session)
            page.goto(f"{url}/#/runs/large")
            until(page, f"({DRAWN}) >= 0")
            found["first paint"].append(work(session) - before)
            page.wait_for_timeout(1_000)
            half, last = steps // 2, steps - steps // 4
            for action, address, done in (
                ("zoom", f"from={half}&to={last}", f"({DRAWN}) >= {half - 64}"),
                ("search", "find=*mlp*", f"{SAID}.includes('match')"),
                ("rows", "rows=100-199", f"{SAID}.includes('rows 101')"),
            ):
                before = work(session)
                page.evaluate(f"location.hash = '#/runs/large?{address}'")
                until(page, done)
                page.wait_for_timeout(60)
                found[action].append(work(session) - before)
                page.wait_for_timeout(500)
            context.close()
        browser.close()
    return found


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print(f"{platform.platform()}, {platform.machine()}, Python {platform.python_version()}")
    print(f"{asked.layers} layers x {asked.steps} steps, {asked.rounds} rounds")
    print("CPU seconds of the main thread")
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "page.db", free_port(0)) as url,
    ):
        fill(url, asked.layers, asked.steps)
        for action, seconds in measure(url, asked.steps, asked.rounds).items():
            low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
            print(f"{action:12} median {middle:.3f}  ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
