"""``snc token``: the first one on the store, the others over REST, each secret shown once."""

import json
import time

import httpx
import pytest
from test_cli import failed, serving, snc

from snc_service.auth import SECRET
from snc_service.cli.commands.token import expiry
from snc_service.cli.failure import Failure
from snc_service.store import open_store


@pytest.fixture
def store_url(tmp_path):
    return f"sqlite:///{tmp_path / 'snc.db'}"


def created(*arguments):
    done = snc("token", "create", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_token_made_in_the_store_opens_the_service_that_starts_on_it(tmp_path, store_url):
    secret = created("root", "--scope=admin", "--store", store_url)
    assert SECRET.fullmatch(secret)
    with serving(tmp_path / "snc.db", "--host=0.0.0.0") as url:
        assert httpx.get(f"{url}/api/v1/runs").status_code == 401
        headers = {"Authorization": f"Bearer {secret}"}
        assert httpx.get(f"{url}/api/v1/runs", headers=headers).status_code == 200
        reader = created("rd", "--scope=read", "--expires=1d", "--url", url, "--token", secret)
        assert snc("runs", "--url", url, SNC_TOKEN=reader).returncode == 0
        assert "scopes" in failed(snc("token", "list", "--url", url, SNC_TOKEN=reader))
        listed = snc("token", "list", "--json", "--url", url, SNC_TOKEN=secret)
        assert [(t["name"], t["author"]) for t in json.loads(listed.stdout)["items"]] == [
            ("root", "operator"),
            ("rd", "root"),
        ]
        assert snc("token", "revoke", "rd", "--url", url, SNC_TOKEN=secret).returncode == 0
        assert "revoked" in failed(snc("runs", "--url", url, SNC_TOKEN=reader))


def test_a_running_service_obeys_what_is_done_on_its_store(tmp_path, store_url):
    with serving(tmp_path / "snc.db") as url:
        assert httpx.get(f"{url}/api/v1/runs").status_code == 200
        secret = created("root", "--scope=admin", "--store", store_url)
        time.sleep(1.1)
        assert httpx.get(f"{url}/api/v1/runs").status_code == 401
        headers = {"Authorization": f"Bearer {secret}"}
        assert httpx.get(f"{url}/api/v1/runs", headers=headers).status_code == 200
        assert snc("token", "revoke", "root", "--store", store_url).returncode == 0
        time.sleep(1.1)
        assert httpx.get(f"{url}/api/v1/runs", headers=headers).status_code == 401


def test_the_secret_is_alone_on_stdout_and_never_listed(store_url):
    done = snc("token", "create", "ci", "--scope=ingest", "--project=p", "--store", store_url)
    secret = done.stdout.strip()
    assert done.stdout == f"{secret}\n"
    assert "not shown again" in done.stderr
    for more in ((), ("--json",)):
        listed = snc("token", "list", "--store", store_url, *more)
        assert "ci" in listed.stdout
        assert secret[17:] not in listed.stdout
    store = open_store(store_url)
    (token,) = store.tokens.all()
    assert (token.scopes, token.project, token.author) == (("ingest",), "p", "operator")
    store.close()
    assert secret[17:].encode() not in b"".join(
        path.read_bytes() for path in store._database.path.parent.iterdir()
    )


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("a b", "--scope=read"), "name"),
        (("client", "--scope=read"), "client"),
        (("x", "--scope=read", "--project=../etc"), "project"),
        (("x", "--scope=read", "--expires=soon"), "--expires"),
        (("x", "--scope=read", "--expires=0d"), "--expires"),
    ],
)
def test_a_wrong_argument_is_one_sentence_and_makes_nothing(arguments, names, store_url):
    assert names in failed(snc("token", "create", *arguments, "--store", store_url))
    assert json.loads(snc("token", "list", "--json", "--store", store_url).stdout)["items"] == []


def test_a_name_is_not_used_twice_and_an_unknown_one_not_revoked(store_url):
    created("a", "--scope=read", "--store", store_url)
    assert "another name" in failed(snc("token", "create", "a", "--scope=read",
                                        "--store", store_url))  # fmt: skip
    assert "no token named 'b'" in failed(snc("token", "revoke", "b", "--store", store_url))
    assert "sqlite:///PATH" in failed(snc("token", "list", "--store", "nothing"))


def test_a_scope_that_does_not_exist_is_wrong_usage(store_url):
    assert snc("token", "create", "a", "--scope=root", "--store", store_url).returncode == 2
    assert snc("token", "create", "a", "--store", store_url).returncode == 2


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h", 3600), ("90d", 90 * 86_400), ("4w", 28 * 86_400)]
)
def test_a_time_to_live_has_a_unit(text, seconds):
    assert expiry(text, 100.0) == 100.0 + seconds


@pytest.mark.parametrize("text", ["", "1", "d", "-1d", "1.5d", "1y", "9999999d", "1d "])
def test_a_time_to_live_without_sense_is_refused(text):
    with pytest.raises(Failure, match="90d"):
        expiry(text, 0.0)


def test_check_says_of_each_thing_whether_it_is_fit(tmp_path, store_url):
    done = snc("serve", "--check", "--port=0", "--store", store_url)
    assert done.returncode == 0, done.stderr
    settings, store, port = done.stdout.splitlines()
    assert settings.startswith("settings: understood")
    assert "no token" in store
    assert port == "port: free"
    created("root", "--scope=admin", "--store", store_url)
    done = snc("serve", "--check", "--host=0.0.0.0", "--port=0", "--store", store_url)
    assert "1 token" in done.stdout


def test_check_names_what_is_not_fit(tmp_path, store_url):
    missing = f"sqlite:///{tmp_path}/no/such/snc.db"
    assert "SNC_STORE" in failed_check("--port=0", "--store", missing)
    assert "--insecure" in failed_check("--host=0.0.0.0", "--port=0", "--store", store_url)
    with serving(tmp_path / "snc.db") as url:
        port = url.rpartition(":")[2].rstrip("/")
        assert f":{port}" in failed_check(f"--port={port}", "--store", store_url)


def failed_check(*options):
    done = snc("serve", "--check", *options)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr
