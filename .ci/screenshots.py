"""Take the pictures of the docs: ``make screenshots`` runs the demo's faults and opens their pages.

    python .ci/screenshots.py [--steps N] [FAULT ...]

Writes ``docs/page.png`` of the demo's default fault and ``docs/gallery/FAULT.png`` of others: both
runs side by side, as the address shows them that the demo prints. Prints the demo's own summaries.
Needs Chromium, and two to ten minutes for each fault.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from playwright.sync_api import Page, sync_playwright

from snc_client.demo.faults import DEFAULT_FAULT, FAULTS
from snc_client.demo.service import free_port, serving
from snc_client.demo.training import Recipe

ROOT: Final = Path(__file__).resolve().parents[1]
DOCS: Final = ROOT / "docs"
GALLERY: Final = DOCS / "gallery"
SIZE: Final = {"width": 1280, "height": 1400}
ADDRESS: Final = re.compile(r"^page +http://[^/]+/(#/compare/\S+)$", re.MULTILINE)


def main() -> int:
    """Take the pictures; return the exit status."""
    parser = argparse.ArgumentParser(description="Take the pictures of the docs.")
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="of each run of the demo")
    asked = parser.parse_args()
    unknown = set(asked.faults) - FAULTS.keys()
    if unknown:
        parser.error(f"FAULT must be one of {', '.join(FAULTS)}, got {', '.join(sorted(unknown))}")
    chromium = shutil.which("chromium")
    if chromium is None:
        print("Chromium is missing: install the package chromium", file=sys.stderr)
        return 1
    GALLERY.mkdir(exist_ok=True)
    for fault in asked.faults or FAULTS:
        with tempfile.TemporaryDirectory(prefix="snc-screenshots-") as folder:
            store = Path(folder) / "demo.db"
            address = trained(store, fault, asked.steps)
            picture = DOCS / "page.png" if fault == DEFAULT_FAULT else GALLERY / f"{fault}.png"
            with serving(store, free_port(0)) as url:
                take(chromium, f"{url}/{address}", picture)
        print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size} bytes", flush=True)
    return 0


def trained(store: Path, fault: str, steps: int) -> str:
    """Run the demo into a store; return the address of its comparison below the service's."""
    command = [sys.executable, "-m", "snc_service.cli", "demo", "--exit", f"--store={store}"]
    done = subprocess.run(
        [*command, f"--fault={fault}", f"--steps={steps}", "--port=0"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    print(done.stdout, flush=True)
    found = ADDRESS.search(done.stdout)
    if found is None:
        raise ValueError("the demo must print the address of its page, got none")
    return found[1]


def take(chromium: str, address: str, file: Path) -> None:
    """Write a picture of a comparison when all of it is drawn."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")  # type: ignore[arg-type]
        page.set_default_timeout(60_000)
        page.goto(address)
        _wait(page)
        page.screenshot(path=file)
        browser.close()


def _wait(page: Page) -> None:
    heatmaps = page.locator(".heatmap .plot:not([hidden]) canvas")
    heatmaps.nth(1).wait_for()
    page.wait_for_function("document.querySelectorAll('.plot').length > 2")
    page.wait_for_load_state("networkidle")


if __name__ == "__main__":
    sys.exit(main())
