"""``snc runs`` and its verbs, in real processes against a real service."""

import json

import httpx
from test_cli import snc

from snc_service.cli import main


def listed(url: str, *arguments: str) -> list[dict]:
    done = snc("runs", "--json", *arguments, SNC_URL=url)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["items"]


def test_runs_are_changed_and_found_by_what_was_changed(service_url, capsys):
    for run in ("a", "b", "c"):
        body = {"run": run, "config": {"lr": 0.1}, "tags": ["old"]}
        httpx.post(f"{service_url}/api/v1/runs", json=body).raise_for_status()

    def done(*arguments: str) -> str:
        assert main([*arguments, "--url", service_url]) == 0
        return capsys.readouterr().out

    assert "the first" in done("runs", "rename", "a", "the first")
    assert "old, new" in done("runs", "tag", "a", "b", "--add", "new")
    done("runs", "tag", "b", "--remove", "old")
    done("runs", "note", "a", "looks good")
    done("runs", "finish", "a", "--failed")
    assert "archived" in done("runs", "archive", "c")
    assert [item["run"] for item in listed(service_url)] == ["b", "a"]
    assert [item["run"] for item in listed(service_url, "-q", "archived:yes")] == ["c"]
    (found,) = listed(service_url, "-q", "tag:old config.lr=0.1 state:failed")
    assert (found["name"], found["tags"], found["note"]) == (
        "the first",
        ["old", "new"],
        "looks good",
    )
    done("runs", "archive", "c", "--undo")
    assert [item["run"] for item in listed(service_url, "--sort", "name")] == ["b", "c", "a"]


def test_deleting_asks_first_and_deletes_all_or_nothing(service_url):
    for run in ("a", "b"):
        httpx.post(f"{service_url}/api/v1/runs", json={"run": run}).raise_for_status()
    refused = snc("runs", "delete", "a", SNC_URL=service_url)
    assert refused.returncode == 1
    assert "--yes" in refused.stderr
    missing = snc("runs", "delete", "a", "nowhere", "--yes", SNC_URL=service_url)
    assert missing.returncode == 1
    assert "nowhere" in missing.stderr
    assert len(listed(service_url)) == 2
    assert snc("runs", "delete", "a", "--yes", SNC_URL=service_url).returncode == 0
    assert [item["run"] for item in listed(service_url)] == ["b"]


def test_a_query_that_cannot_be_read_is_said_in_one_line(service_url):
    refused = snc("runs", "-q", "colour:red", SNC_URL=service_url)
    assert refused.returncode == 1
    assert "must ask for a field among" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
