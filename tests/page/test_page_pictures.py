"""A picture of every view, and what a look at it would find: broken words, covered or cut parts.

The pictures are kept in the folder that SNC_PICTURES names, to be looked at.
"""

import os
from pathlib import Path

import pytest
from chromium import needs_chromium
from page_views import SIZES
from playwright.sync_api import Page

pytestmark = needs_chromium

BROKEN_WORDS = """() => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const { parentElement } = node;
        const isApart = parentElement.closest(".visually-hidden, pre, code");
        if (isApart || !parentElement.checkVisibility()) continue;
        for (const { 0: word, index } of node.data.matchAll(/[\\p{L}\\d]{2,20}/gu)) {
            const range = document.createRange();
            range.setStart(node, index);
            range.setEnd(node, index + word.length);
            const boxes = [...range.getClientRects()].filter((box) => box.width > 0);
            const lines = new Set(boxes.map((box) => Math.round(box.top)));
            if (lines.size > 1) found.push(`${word} in ${node.data.slice(0, 60)}`);
        }
    }
    return found;
}"""
OVERLAPS = """() => {
    const boxes = [...document.querySelectorAll(".panel, .facts, .verdict, .view-head, .table-box")]
        .filter((e) => e.checkVisibility());
    const named = (e) => e.className;
    return boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => {
        if (a.contains(b) || b.contains(a)) return false;
        const [p, q] = [a.getBoundingClientRect(), b.getBoundingClientRect()];
        return Math.min(p.right, q.right) - Math.max(p.left, q.left) > 1
            && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 1;
    }).map((b) => `${named(a)} over ${named(b)}`));
}"""
# What ends in an ellipsis has its whole text as a title.
CUT = """() => [...document.querySelectorAll("main *")].filter((e) => {
    const { overflowX, overflowY } = getComputedStyle(e);
    const isRead = e.closest(".visually-hidden, [title]:not([title=''])");
    if (!e.checkVisibility() || isRead) return false;
    return (overflowX === "hidden" && e.scrollWidth > e.clientWidth + 1)
        || (overflowY === "hidden" && e.scrollHeight > e.clientHeight + 1 && e.clientHeight > 0);
}).map((e) => `${e.className}: ${e.textContent.slice(0, 60)}`)"""
EMPTY = """() => [...document.querySelectorAll(".panel, .legend, .scale, .scale-part, p, li, dd")]
    .filter((e) => e.checkVisibility() && e.getBoundingClientRect().height > 12)
    .filter((e) => !e.closest(".visually-hidden") && !e.querySelector("canvas, input"))
    .filter((e) => !e.textContent.trim())
    .map((e) => e.outerHTML.slice(0, 80))"""


def look(page: Page, name: str, folder: Path) -> dict[str, list[str]]:
    """Take a picture; return what is wrong in it."""
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png", full_page=True)
    width = page.viewport_size["width"]
    wide = page.evaluate("document.documentElement.scrollWidth")
    found = {
        "broken words": page.evaluate(BROKEN_WORDS),
        "overlaps": page.evaluate(OVERLAPS),
        "cut": page.evaluate(CUT),
        "empty": page.evaluate(EMPTY),
        "wider than the screen": [str(wide)] if wide > width else [],
    }
    return {f"{name}, {what}": where for what, where in found.items() if where}


@pytest.mark.parametrize(
    ("size", "scheme"), [("wide", "light"), ("tablet", "light"), ("phone", "dark")]
)
def test_in_a_picture_of_every_view_no_word_is_broken_and_nothing_cut(
    each_view, tmp_path, size, scheme
):
    width, height = SIZES[size]
    folder = Path(os.environ.get("SNC_PICTURES", tmp_path)) / f"{size}-{scheme}"
    wrong: dict[str, list[str]] = {}
    for name, page in each_view(viewport={"width": width, "height": height}, color_scheme=scheme):
        wrong |= look(page, name, folder)
    assert wrong == {}
