"""What the service hands to a browser: the page's files, their headers, what they must not be."""

import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI

from snc_service import problems, ui

STATIC = ui.STATIC
MODULES = sorted(file.relative_to(STATIC).as_posix() for file in STATIC.rglob("*.js"))


def source(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def app() -> FastAPI:
    app = FastAPI()
    problems.install(app)
    ui.mount(app)
    return app


def ask(app: FastAPI, path: str, **headers: str) -> httpx.Response:
    async def get() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
            return await http.get(path, headers={"Accept-Encoding": "identity"} | headers)

    return asyncio.run(get())


def linked(page: str) -> list[str]:
    return re.findall(r'(?:src|href)="(ui/[^"]+)"', page)


def test_the_page_forbids_everything_that_is_not_its_own(app):
    answer = ask(app, "/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_is_asked_for_again_each_time_and_unchanged_is_304(app):
    first = ask(app, "/")
    assert first.headers["cache-control"] == "no-cache"
    again = ask(app, "/", **{"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert "content-security-policy" in again.headers


def test_all_that_the_page_loads_is_kept_for_good_and_served_in_both_encodings(app):
    paths = linked(ask(app, "/").text)
    others = ("styles/base.css", "favicon.svg", "styles/views.css")
    assert {path.split("/", 2)[2] for path in paths} == {*MODULES, *others}
    for path in paths:
        plain = ask(app, f"/{path}")
        assert plain.status_code == 200, path
        assert "immutable" in plain.headers["cache-control"]
        assert plain.headers["content-type"].split(";")[0] in set(
            kind.split(";")[0] for kind in ui.MEDIA_TYPES.values()
        )
        packed = ask(app, f"/{path}", **{"Accept-Encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
        assert packed.content == plain.content
        assert packed.headers["etag"] != plain.headers["etag"]


def test_the_page_is_read_and_compressed_once_however_many_services_there_are():
    assert ui.load_page() is ui.load_page()


@pytest.mark.parametrize(
    "path", ["/ui/", "/ui/app.js", "/ui/0000000000000000/app.js", "/ui/%2e%2e/__init__.py"]
)
def test_a_file_that_is_not_of_this_release_is_a_404_that_says_so(app, path):
    answer = ask(app, path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "no file" in answer.json()["detail"]


def test_addresses_in_the_page_are_relative_so_a_proxy_may_add_a_prefix():
    assert not re.findall(r'(?:src|href)="(?:/|[a-z]+:)[^"]*"', source("index.html"))
    for name in MODULES:
        imports = re.findall(r'from "([^"]+)"', source(name))
        folder = (STATIC / name).parent
        for path in imports:
            assert path.startswith(("./", "../")), (name, path)
            found = (folder / path).resolve().relative_to(STATIC.resolve())
            assert found.as_posix() in MODULES, (name, path)


def test_no_file_of_ours_names_another_origin():
    for entry in (file for file in STATIC.rglob("*") if file.is_file()):
        text = entry.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//[a-z0-9.-]+\.[a-z]{2,}/", text), entry.name


def test_no_module_can_turn_text_into_markup_or_code():
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment"
        r"|DOMParser|\beval\b|new Function|setAttribute\(\s*[\"']style|srcdoc"
    )
    for name in MODULES:
        assert not re.search(forbidden, source(name)), name
    # Attributes are set by name: none may be a listener.
    assert not re.search(r"\bon[a-z]+:\s*[\"'`]", "".join(map(source, MODULES)))
    assert not re.search(r"<(script|style)>|\son[a-z]+=|\sstyle=", source("index.html"))


def themes() -> dict[str, dict[str, str]]:
    """Return the colors of each theme, as the style sheet defines them."""
    blocks = re.findall(r"(:root[^{]*)\{([^}]*)\}", source("styles/base.css"))
    colors = {
        selector.strip(): dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", body))
        for selector, body in blocks
    }
    light = colors[":root"]
    dark = light | colors[':root[data-theme="dark"]']
    by_system = light | colors[':root:not([data-theme="light"])']
    return {"light": light, "dark": dark, "dark by system": by_system}


def luminance(color: str) -> float:
    """Return the relative luminance that WCAG 2 defines."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_on_every_surface(theme):
    colors = themes()[theme]
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for text in ("ink", "dim", "accent", "bad", "near", "good", "nonfinite", "severity-warning"):
        for surface in ("page", "surface", "raised", "chosen"):
            ratio = contrast(colors[text], colors[surface])
            assert ratio >= 4.5, f"{text} on {surface}: {ratio:.2f}"
    assert contrast(colors["accent-ink"], colors["accent"]) >= 4.5
    assert contrast(colors["ink"], colors["well"]) >= 4.5
    assert contrast(colors["dim"], colors["well"]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_and_the_borders_of_fields_stand_out_from_what_is_behind_them(theme):
    colors = themes()[theme]
    for i in range(1, 9):
        assert contrast(colors[f"series-{i}"], colors["well"]) >= 3, i
    assert contrast(colors["strong-line"], colors["surface"]) >= 3


def test_dark_is_the_same_whether_chosen_or_asked_for_by_the_system():
    assert themes()["dark"] == themes()["dark by system"]
