"""Words where names belong, and paths that climb: refused, or kept letter by letter."""

import json
import random
import re
from urllib.parse import quote

import httpx
import pytest
from hostile import BATCHES, JSON, running_victim, surviving
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    with running_victim(tmp_path_factory.mktemp("hostile")) as victim:
        yield victim


@pytest.fixture(autouse=True)
def survived(victim):
    with surviving(victim):
        yield


TRAVERSALS = ["/../../etc/passwd", "/ui/../../../etc/passwd", "/ui/..%2f..%2f..%2fetc%2fpasswd",
              "/ui/%2e%2e/%2e%2e/etc/passwd", "/ui/....//....//etc/passwd", "/ui//etc/passwd",
              "/ui/..%5c..%5cboot.ini", "/ui/%00", "/ui/%ff%fe", "/api/v1/runs/..%2f..%2fsecret",
              "/api/v1/runs/../audit/x", "/problems/../../etc/passwd", "/problems/%2e%2e",
              "/metrics/runs/../../etc", "/api/v1/runs/r/layers/..%2f..%2fx/history",
              "/api/v1/projects/..%2f..%2fx/policy", "//evil.example/%2e%2e",
              "/%c0%ae%c0%ae/", "/api/v1/runs/%00", "/api/v1/runs/r%00x"]  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_a_path_that_climbs_gets_nowhere(victim, path):
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    assert 400 <= victim.raw(request.encode()) < 500


WORDS = ["'; drop table run; --", '" or "1"="1', "<img src=x onerror=alert(1)>", "</script>",
         "=cmd|' /C calc'!A0", "@SUM(1)", "{{7*7}}", "${jndi:ldap://x}", "%s%n%x", "%(run)s",
         "../../../etc/passwd", "a\\b", 'a"b', "a{b=\"c\"} 1", "\u202egnp.exe", "\ud800", "\x00",
         "a\nb", "a\r\nX-Evil: 1", "\x1b[2J", "\u2028", "\U0001f600" * 64, "é" * 128, "x" * 257,
         " ", "", "NaN", "null", "-1"]  # fmt: skip


def dumped(value):
    """Return JSON; a lone surrogate goes out as an escape, as a stranger would write it."""
    return json.dumps(value).encode("ascii")


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_a_name_is_refused_or_kept_letter_by_letter(victim, word):
    http = victim.http
    kept = {}
    for field, value in (("run", word), ("project", word), ("name", word), ("tags", [word]),
                         ("config", {word: word})):  # fmt: skip
        run = {"run": f"n{random.randrange(10**9)}"} | {field: value}
        told = http.post("/api/v1/runs", content=dumped(run), headers=JSON)
        assert told.status_code in (201, 400, 422), (field, told.text)
        if told.is_success:
            kept[field] = http.get(told.headers["Location"]).json()[field]
            assert kept[field] == value
    assert ("run" in kept) == ("project" in kept) == (word in ("NaN", "null"))
    for path, body in ((f"{BATCHES}", {"writer": word, "seq": 0, "steps": [1],
                                       "scalars": {"loss": [1]}}),
                       (f"{BATCHES}", {"writer": "x", "seq": 0, "steps": [1],
                                       "scalars": {word: [1]}}),
                       (f"{BATCHES}", {"writer": "x", "seq": 0, "steps": [1], "layers": ["a"],
                                       "metrics": {word: [[1]]}}),
                       (f"{BATCHES}", {"writer": f"l{random.randrange(10**9)}", "seq": 0,
                                       "steps": [1], "layers": [word],
                                       "metrics": {"sigma": [[1]]}}),
                       ("/api/v1/runs/r/commands", {"action": word}),
                       ("/api/v1/session", {"token": word}),
                       ("/api/v1/tokens", {"name": word, "scopes": ["read"]})):  # fmt: skip
        told = http.post(path, content=dumped(body), headers=JSON)
        assert told.status_code in (200, 400, 409, 422), (body, told.text)
    pattern = {"entries": [{"pattern": word, "threshold": 1}]}
    told = http.put("/api/v1/projects/p/policy", content=dumped(pattern), headers=JSON)
    assert told.status_code in (200, 400, 422)
    for headers in ({"X-Request-ID": word}, {"If-Match": word}, {"SNC-Commands-Seen": word},
                    {"Origin": word}, {"Host": word},
                    {"Cookie": f"snc_session={word}"}):  # fmt: skip
        try:
            told = http.put("/api/v1/projects/q/policy", json=pattern, headers=headers)
        except (httpx.HTTPError, UnicodeError, ValueError):
            continue  # such a header cannot be sent
        assert told.status_code < 500
        assert "X-Evil" not in told.headers
    samples = [
        (sample.name, *sorted(sample.labels.items()))
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    ]
    assert len(samples) == len(set(samples))


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_a_word_in_a_url_is_a_question_about_nothing(victim, word):
    text = quote(word, safe="", errors="surrogatepass")
    for path in (f"runs/{text}", f"runs/r/layers/{text}/history", f"projects/{text}/policy",
                 f"runs/r/scalars/{text}/history", f"runs?project={text}", f"runs?cursor={text}",
                 f"runs/r/layers?sort={text}", f"runs/r/events?rule={text}",
                 f"runs/r/events?layer={text}", f"runs?{text}=1", f"runs/r/history?layer={text}",
                 f"runs/r/heatmap?metric={text}", f"audit?author={text}"):  # fmt: skip
        told = victim.http.get(f"/api/v1/{path}")
        assert told.status_code < 500, (path, told.text)
        if told.is_success and "/layers/" in path:
            assert told.json()["layer"] == word


def examples(schema):
    """Yield (method, path, example) of every operation that takes JSON."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json")
            if body is not None:
                yield method.upper(), path, body["example"]


def altered(value, word):
    """Yield ``value`` once per text or key in it, with ``word`` in its place."""
    if isinstance(value, str):
        yield word
    elif isinstance(value, dict):
        for key, below in value.items():
            yield {word if k == key else k: v for k, v in value.items()}
            yield from ({**value, key: other} for other in altered(below, word))
    elif isinstance(value, list):
        for place, below in enumerate(value):
            yield from ([*value[:place], other, *value[place + 1 :]]
                        for other in altered(below, word))  # fmt: skip


# Making a token would close the door behind us; the words for its name are tried above.
CLOSES = {"create_token"}


@pytest.mark.parametrize("word", WORDS, ids=range(len(WORDS)))
def test_a_word_anywhere_in_any_body_is_understood_or_refused(victim, word):
    schema = victim.http.get("/openapi.json").json()
    tried = 0
    for method, path, example in examples(schema):
        if schema["paths"][path][method.lower()]["operationId"] in CLOSES:
            continue
        url = re.sub(r"\{run\}", "r", path)
        url = re.sub(r"\{project\}", "p", url)
        url = re.sub(r"\{\w+\}", "0", url)
        for body in altered(example, word):
            told = victim.http.request(method, url, content=dumped(body), headers=JSON)
            assert told.status_code < 500, (method, path, body, told.text)
            assert "X-Evil" not in told.headers
            tried += 1
    assert tried >= 60
