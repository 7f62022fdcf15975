"""The keyboard alone, on every view: Tab reaches, Enter activates, Escape closes."""

from chromium import needs_chromium
from page_views import VIEWS
from playwright.sync_api import Page, expect

pytestmark = needs_chromium

# What the keyboard must reach: in an open dialog, what is in it. Each gets its number in the order
# of the document, and keys that activate it are noted instead of obeyed.
NUMBERED = """() => {
    const root = document.querySelector("dialog[open]") ?? document.body;
    const controls = "a[href],button,input,select,textarea,summary,[tabindex='0'],[role=button]";
    const stops = [...root.querySelectorAll(controls)]
        .filter((e) => e.checkVisibility() && !e.disabled);
    stops.forEach((stop, i) => { stop.dataset.stop = i; });
    window.clicked = [];
    addEventListener("click", (event) => {
        window.clicked.push(event.target.closest("[data-stop]")?.dataset.stop ?? "nothing");
        event.preventDefault();
        event.stopImmediatePropagation();
    }, true);
    return stops.map((stop) => stop.matches("a[href],button,summary,[role=button]"));
}"""
FOCUSED = """() => {
    const focused = document.activeElement;
    const { outlineStyle, outlineWidth } = getComputedStyle(focused);
    const box = focused.getBoundingClientRect();
    const seen = outlineStyle !== "none" && parseFloat(outlineWidth) >= 2
        && box.bottom > 0 && box.top < innerHeight && getComputedStyle(focused).opacity > 0;
    return [focused.dataset?.stop ?? null, seen];
}"""
NAMELESS = """() => [...document.querySelectorAll("[data-stop]")].filter((e) =>
    !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length))
    .map((e) => e.outerHTML.slice(0, 80))"""
# What looks as if it could be clicked, outside of everything that the keyboard reaches.
MOUSE_ONLY = """() => [...document.querySelectorAll("body *")]
    .filter((e) => e.closest("dialog[open]") || !document.querySelector("dialog[open]"))
    .filter((e) => e.checkVisibility() && getComputedStyle(e).cursor === "pointer")
    .filter((e) => !e.closest("[data-stop],label,tr:has([data-stop])"))
    .map((e) => e.outerHTML.slice(0, 80))"""


def walk(page: Page) -> dict[str, list[str]]:
    """Press Tab until every control was reached, and Enter on those it activates."""
    is_active = page.evaluate(NUMBERED)
    reached, unseen, dead = set(), set(), set()
    for _ in range(len(is_active) + 5):
        page.keyboard.press("Tab")
        stop, seen = page.evaluate(FOCUSED)
        if stop is None or stop in reached:
            continue
        reached.add(stop)
        if not seen:
            unseen.add(stop)
        if is_active[int(stop)]:
            page.keyboard.press("Enter")
            if page.evaluate("window.clicked.pop()") != stop:
                dead.add(stop)
    missed = {str(i) for i in range(len(is_active))} - reached
    found = {"not reached": missed, "focus not visible": unseen, "Enter does nothing": dead}
    html = "stop => document.querySelector(`[data-stop='${stop}']`).outerHTML.slice(0, 80)"
    told = {what: [page.evaluate(html, stop) for stop in stops] for what, stops in found.items()}
    return told | {
        "without a name": page.evaluate(NAMELESS),
        "for a mouse alone": page.evaluate(MOUSE_ONLY),
    }


def test_the_keyboard_reaches_shows_and_activates_everything_on_every_view(each_view):
    found = {name: walk(page) for name, page in each_view()}
    assert len(found) == len(VIEWS) + 2
    wrong = [
        f"{name}: {what}: {place}"
        for name, told in found.items()
        for what, places in told.items()
        for place in places
    ]
    assert wrong == []


def test_escape_closes_what_is_open_and_leaves_the_focus_where_it_was(opened, filled):
    for title, button in (("About view-bad", "Edit"), ("Mark a planned change", "Mark a change")):
        with opened(filled, "#/runs/view-bad") as page:
            opener = page.get_by_role("button", name=button).first
            opener.focus()
            page.keyboard.press("Enter")
            expect(page.get_by_role("dialog", name=title)).to_be_visible()
            page.keyboard.press("Escape")
            expect(page.get_by_role("dialog")).to_have_count(0)
            expect(opener).to_be_focused()
    with opened(filled, "#/") as page:
        page.locator("summary", has_text="Columns").press("Enter")
        menu = page.locator("details[open]")
        expect(menu).to_have_count(1)
        page.keyboard.press("Tab")
        page.keyboard.press("Escape")
        expect(menu).to_have_count(0)
