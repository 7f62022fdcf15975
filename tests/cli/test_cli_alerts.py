"""``snc alerts`` in real processes against a real service."""

import json

import httpx
import pytest
from listeners import listening, nobody, until
from test_cli import HOSTILE, failed, post, serving, snc

from snc_service.cli.commands.alerts import duration, read_document
from snc_service.cli.failure import Failure

SECRET = "a secret of sixteen characters"
TOML = """
service_url = "https://snc.example"

[receivers.pager]
type = "webhook"
url = "{url}"
secret = "{secret}"

[[routes]]
project = "*"
severity = "warning"
receivers = ["pager"]
"""


@pytest.fixture
def url(tmp_path):
    with serving(tmp_path / "snc.db") as url:
        yield url


def alerts(url, *arguments, **more):
    return snc("alerts", *arguments, "--url", url, **more)


def routing(tmp_path, text):
    path = tmp_path / "alerts.toml"
    path.write_text(text)
    return str(path)


def test_a_routing_in_toml_is_set_and_shown_without_its_secrets(url, tmp_path):
    text = TOML.format(url="https://pager.example/tail-of-url", secret=SECRET)
    done = alerts(url, "set", "--file", routing(tmp_path, text))
    assert done.returncode == 0, done.stderr
    assert "Routing version 1, set by anonymous" in done.stdout
    shown = alerts(url, "get").stdout
    for word in ("pager", "webhook", "https://pager.example", "warning", "14400 s"):
        assert word in shown
    assert "tail-of-url" not in done.stdout + shown
    assert SECRET not in done.stdout + shown


def test_what_get_prints_as_json_can_be_given_to_set(url, tmp_path):
    text = TOML.format(url="https://pager.example/tail-of-url", secret=SECRET)
    alerts(url, "set", "--file", routing(tmp_path, text))
    printed = alerts(url, "get", "--json").stdout
    again = alerts(url, "set", "--file", "-", "--json", stdin=printed)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(printed)


def test_the_key_that_is_wrong_is_named_and_the_exit_status_is_1(url, tmp_path):
    text = TOML.format(url="https://pager.example/", secret="short")
    assert "receivers.pager.secret must be" in failed(
        alerts(url, "set", "--file", routing(tmp_path, text))
    )
    assert "version 0" in failed(
        alerts(
            url, "set", "--file", "-", "--if-version", "5", stdin='{"receivers": {}, "routes": []}'
        )
    )


def test_a_test_that_is_not_taken_ends_with_1(url, tmp_path):
    with nobody() as port:
        text = TOML.format(url=f"http://127.0.0.1:{port}/", secret=SECRET)
        alerts(url, "set", "--file", routing(tmp_path, text))
        done = alerts(url, "test")
    assert done.returncode == 1
    assert "SNC_ALERT_NETWORKS=127.0.0.1" in done.stdout
    assert "must be one of the routing" in failed(alerts(url, "test", "ghost"))


def test_nothing_to_test_is_said(url):
    assert "there is no receiver to test" in failed(alerts(url, "test"))


def test_incidents_are_listed_and_looked_after(url):
    post(url, "alpha", steps=[1], layers=["fc1.weight", HOSTILE], sigma=[[3.0, 0.5]])
    until(lambda: httpx.get(f"{url}/api/v1/incidents").json()["items"])
    listed = alerts(url, "list", "--state", "open").stdout
    assert "Incidents: 1" in listed
    assert "breach" in listed
    done = alerts(url, "ack", "1", "--comment", "on it")
    assert done.stdout == "Incident 1 is looked after by anonymous.\n"
    told = json.loads(alerts(url, "list", "--run", "alpha", "--json").stdout)["items"]
    assert told[0]["acknowledged_by"] == "anonymous"
    assert "there is no incident 99" in failed(alerts(url, "ack", "99"))


def test_a_silence_is_made_listed_and_ended(url):
    made = alerts(url, "silence", "--for", "2h", "--run", "gpt-*", "--comment", "tuning")
    assert made.stdout.startswith("Silence 1 holds until ")
    listed = alerts(url, "silences").stdout
    assert "gpt-*" in listed
    assert "tuning" in listed
    assert alerts(url, "unsilence", "1").returncode == 0
    assert json.loads(alerts(url, "silences", "--json").stdout) == {"items": []}
    assert "--for must be a time" in failed(alerts(url, "silence", "--for", "soon"))


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("2h", 7_200), ("1d", 86_400)]
)
def test_a_duration_is_a_number_and_a_unit(text, seconds):
    assert duration(text) == seconds


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path):
    for name, content in (("a.toml", "= 3"), ("a.json", "{"), ("b.json", "[]")):
        path = tmp_path / name
        path.write_text(content)
        with pytest.raises(Failure, match=name):
            read_document(str(path))
    with pytest.raises(Failure, match="cannot read"):
        read_document(str(tmp_path / "none.toml"))


def test_a_receiver_that_is_allowed_gets_the_test(tmp_path, monkeypatch):
    import test_cli

    allowed = {"SNC_ALERT_NETWORKS": "127.0.0.0/8"}
    plain = test_cli.environment
    monkeypatch.setattr(test_cli, "environment", lambda **extra: plain(**allowed, **extra))
    with listening() as there, serving(tmp_path / "snc.db") as url:
        text = TOML.format(url=there.url, secret=SECRET)
        alerts(url, "set", "--file", routing(tmp_path, text))
        done = alerts(url, "test", "pager")
        assert done.returncode == 0, done.stdout
        assert there.wait_for(1)[0].json()["status"] == "test"
