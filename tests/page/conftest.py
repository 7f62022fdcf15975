"""Every view of the page, over three services: a filled one, an empty one, a closed one."""

from collections.abc import Callable, Iterator

import pytest
from page_views import VIEWS, fill
from playwright.sync_api import Page, expect

from snc_client.demo.service import free_port, serving
from snc_service.auth import make_token
from snc_service.store import open_store


@pytest.fixture(scope="module")
def empty_service(tmp_path_factory) -> Iterator[str]:
    """Return the URL of a service without runs."""
    with serving(tmp_path_factory.mktemp("empty") / "snc.db", free_port(0)) as url:
        yield url


@pytest.fixture(scope="module")
def closed_service(tmp_path_factory) -> Iterator[str]:
    """Return the URL of a service that asks for a token."""
    path = tmp_path_factory.mktemp("closed") / "snc.db"
    token, _ = make_token("a", ["read"], project=None, author="x", now=0.0, expires_at=None)
    store = open_store(f"sqlite:///{path}")
    store.tokens.add(token)
    store.close()
    with serving(path, free_port(0)) as url:
        yield url


@pytest.fixture(scope="module")
def filled(page_service) -> str:
    """Return the URL of a service with the runs that the views show."""
    fill(page_service)
    return page_service


@pytest.fixture
def each_view(
    opened, filled, empty_service, closed_service
) -> Callable[..., Iterator[tuple[str, Page]]]:
    """Return a loop over the views: the name of each, and the page that shows it."""
    alone = {"welcome": (empty_service, ""), "login": (closed_service, "401")}

    def loop(**options) -> Iterator[tuple[str, Page]]:
        with opened(filled, "#/", complaints="404", **options) as page:
            for name, (address, ready) in VIEWS.items():
                page.goto("about:blank")  # another address behind the # alone is no new page
                page.goto(f"{filled}/{address}")
                expect(page.locator("main h1, main h2").first).to_be_visible()
                ready(page)
                yield name, page
        for name, (url, complaints) in alone.items():
            with opened(url, "#/", complaints=complaints, **options) as page:
                expect(page.locator("main h1, main h2").first).to_be_visible()
                yield name, page

    return loop
