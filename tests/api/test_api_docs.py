"""The reference at /docs: whole, readable without a script, and with no foreign URL."""

import re
from html.parser import HTMLParser

import pytest
from api_cases import serving_app, settings_in

from snc_service.problems import KINDS


class Seen(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def docs(tmp_path):
    with serving_app(settings_in(tmp_path)) as api:
        told = api.get("/docs")
        assert told.status_code == 200
        assert told.headers["Content-Type"] == "text/html; charset=utf-8"
        seen = Seen()
        seen.feed(told.text)
        seen.schema = api.get("/openapi.json").json()
        yield seen


def test_every_route_and_type_of_problem_is_there(docs):
    for path, methods in docs.schema["paths"].items():
        for method in methods:
            assert f"{method.upper()} {path}" in docs.text
    for kind in KINDS:
        assert f"/problems/{kind}" in docs.text


def test_the_page_loads_nothing_and_points_nowhere_else(docs):
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in docs.tags}
    for _, attributes in docs.tags:
        assert not re.match(r"(https?:)?//", attributes.get("href") or "")
        assert "src" not in attributes


def test_a_parameter_tells_its_bounds_and_its_default(docs):
    assert "1 to 500. Default: 100." in docs.text
    assert "One of -ratio, ratio, -sigma, sigma, model. Default: -ratio." in docs.text


def test_examples_are_shown_as_text(docs):
    assert '"policy_version": 1' in docs.text
    assert 'snc_sigma{run="gpt-small-1",layer="fc1.weight"} 1.2' in docs.text
