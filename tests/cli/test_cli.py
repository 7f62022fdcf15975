"""The command line, in real processes against a real service."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from snc_service import __version__
from snc_service.cli import main
from snc_service.cli.arguments import USES
from snc_service.cli.main import BUILT_IN
from snc_service.cli.output import clean, sparkline

ROOT = Path(__file__).parents[2]
HOSTILE = "a/b [red]\N{RIGHT-TO-LEFT OVERRIDE}%2F?x=1"


def environment(**extra: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SNC_")}
    return {**kept, "NO_PROXY": "127.0.0.1", **extra}


def snc(*arguments: str, stdin: str | None = None, **extra: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "snc_service.cli", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=60,
        env=environment(**extra),
    )


@contextmanager
def serving(store: Path, *options: str, end: int = signal.SIGINT) -> Iterator[str]:
    """Run ``snc serve`` on any free port; yield the URL it prints, end it by a signal."""
    command = [sys.executable, "-m", "snc_service.cli", "serve", "--port=0", *options]
    with subprocess.Popen(
        [*command, f"--store=sqlite:///{store}"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            line = process.stdout.readline()
            pattern = rf"snc {re.escape(__version__)} serves (http://127\.0\.0\.1:\d+)/ .*\n"
            yield re.fullmatch(pattern, line)[1]
        finally:
            process.send_signal(end)
            process.wait(timeout=20)


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("cli") / "snc.db") as url:
        post(url, "alpha", steps=range(40), layers=["fc1.weight", HOSTILE])
        yield url


def post(url: str, run: str, steps, layers, seq: int = 0, sigma=None) -> None:
    httpx.post(f"{url}/api/v1/runs", json={"run": run, "project": "demo"}).raise_for_status()
    rows = sigma or [[1.0 + 0.01 * step, 0.5] for step in steps]
    batch = {
        "writer": "w",
        "seq": seq,
        "steps": list(steps),
        "layers": layers,
        "metrics": {"sigma": rows, "threshold": [[1.2, 2.0]] * len(rows)},
    }
    httpx.post(f"{url}/api/v1/runs/{run}/batches", json=batch).raise_for_status()


def failed(done: subprocess.CompletedProcess) -> str:
    """Return the one sentence of a command that failed."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    assert re.fullmatch(r"snc: [^\n]+\n", done.stderr), done.stderr
    return done.stderr


def test_version_and_help():
    assert snc("--version").stdout == f"snc {__version__}\n"
    said = snc("--help").stdout
    for command in ("serve", "runs", "layers", "history", "events", "policy", "demo"):
        assert command in said


@pytest.mark.parametrize("command", BUILT_IN)
def test_the_help_of_a_command_ends_with_the_page_that_shows_it(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    page = re.search(r"Guide: (\S+) of the project\.$", capsys.readouterr().out.strip())
    assert page is not None
    assert re.search(rf"\bsnc {command}\b", (ROOT / page[1]).read_text())


def test_help_loads_nothing_heavy():
    heavy = ("numpy", "httpx", "fastapi", "uvicorn", "rich", "torch", "snc_client")
    code = (
        "import sys\nfrom snc_service.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_command_that_does_not_exist_is_wrong_usage():
    for arguments in ((), ("fly",), ("layers",), ("runs", "--limit", "0"), ("policy", "get")):
        done = snc(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "usage: snc" in done.stderr


def test_runs_as_a_table_and_as_json(url):
    table = snc("runs", SNC_URL=url).stdout
    assert "alpha" in table
    assert "1.158" in table  # the worst newest ratio: 1.39 / 1.2
    (run,) = json.loads(snc("runs", "--json", "--url", url).stdout)["items"]
    assert (run["run"], run["layers"], run["last_step"]) == ("alpha", 2, 39)
    assert json.loads(snc("runs", "--json", "--project", "other", "--url", url).stdout) == {
        "items": [],
        "next": None,
    }


def test_layers_come_worst_first_and_a_hostile_name_is_text(url):
    done = snc("layers", "alpha", "--url", url)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "matrix" in line]
    assert "fc1.weight" in rows[0]
    assert "a/b [red]\N{REPLACEMENT CHARACTER}%2F?x=1" in rows[1]
    items = json.loads(snc("layers", "alpha", "--json", "--url", url).stdout)["items"]
    assert [item["layer"] for item in items] == ["fc1.weight", HOSTILE]
    first = snc("layers", "alpha", "--json", "--limit", "1", "--url", url)
    assert len(json.loads(first.stdout)["items"]) == 1


def test_history_draws_a_line_and_lists_exact_values(url):
    done = snc("history", "alpha", "fc1.weight", "--points", "40", "--url", url)
    assert done.returncode == 0, done.stderr
    title, line, *table = done.stdout.splitlines()
    assert title == "fc1.weight: sigma of alpha"
    assert (len(line), line[0], line[-1]) == (40, "▁", "█")
    assert any("39" in row and "1.39" in row for row in table)
    answer = json.loads(
        snc("history", "alpha", HOSTILE, "--json", "--from-step", "38", "--url", url).stdout
    )
    assert (answer["layer"], answer["steps"], answer["max"]) == (HOSTILE, [38, 39], [0.5, 0.5])


def test_a_long_history_shows_the_range_of_each_bucket(url):
    said = snc("history", "alpha", "fc1.weight", "--points", "10", "--url", url).stdout
    assert "4 steps a row" in said.splitlines()[0]
    assert all(name in said for name in ("mean", "min", "max"))


def test_events_are_listed_oldest_first(url):
    items = json.loads(snc("events", "alpha", "--json", "--url", url).stdout)["items"]
    assert items[0]["rule"] == "run_started"
    assert "breach" in [item["rule"] for item in items]
    assert [item["id"] for item in items] == sorted(item["id"] for item in items)
    table = snc("events", "alpha", "--rule", "breach", "--url", url).stdout
    assert "fc1.weight: sigma 1.21 exceeds its threshold 1.20" in table


def test_follow_shows_what_happens_until_the_run_closes(url):
    post(url, "followed", steps=[0], layers=["a", "b"])
    process = subprocess.Popen(
        [sys.executable, "-m", "snc_service.cli", "events", "followed", "--follow", "--json"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(SNC_URL=url),
    )
    lines = iter(process.stdout.readline, "")
    assert json.loads(next(lines))["rule"] == "run_started"
    post(url, "followed", steps=[1], layers=["a", "b"], seq=1, sigma=[[None, 9.0]])
    assert json.loads(next(lines))["rule"] == "breach"
    httpx.post(f"{url}/api/v1/runs/followed/finish", json={"state": "finished"}).raise_for_status()
    assert [json.loads(line)["rule"] for line in lines] == ["run_finished"]
    assert process.wait(timeout=20) == 0
    process.stdout.close()


def test_a_policy_is_set_shown_and_guarded_by_its_version(url):
    post(url, "held", steps=[0], layers=["a", "b"])
    done = snc(
        *("policy", "set", "held", "--entry", "a=b*=3x init", "--entry", "*=none:observe"),
        *("--json", "--url", url),
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["policy"]["entries"] == [
        {"pattern": "a=b*", "threshold": "3x init", "action": "rescale"},
        {"pattern": "*", "threshold": None, "action": "observe"},
    ]
    shown = snc("policy", "get", "held", "--url", url).stdout
    assert "3x init" in shown
    assert "none" in shown
    version = str(answer["policy_version"])
    accepted = snc("policy", "set", "held", "--entry=*=2", "--if-version", version, "--url", url)
    assert accepted.returncode == 0, accepted.stderr
    stale = snc("policy", "set", "held", "--entry=*=9", "--if-version", version, "--url", url)
    assert "(412)" in failed(stale)
    newest = json.loads(snc("policy", "get", "held", "--json", "--url", url).stdout)
    assert newest["policy"]["entries"][0]["threshold"] == 2


def test_a_project_policy_comes_from_a_file_or_stdin(url, tmp_path):
    text = '{"entries": [{"pattern": "*", "threshold": "2x rms"}]}'
    (tmp_path / "policy.json").write_text(text)
    for path, stdin in ((str(tmp_path / "policy.json"), None), ("-", text)):
        done = snc(
            *("policy", "set", "--project", "p", "--file", path, "--url", url, "--json"),
            stdin=stdin,
        )
        assert json.loads(done.stdout)["policy"]["entries"][0]["threshold"] == "2x rms"


@pytest.mark.parametrize("use", USES)
def test_a_recipe_is_a_policy_file_that_a_project_takes_with_its_comments(url, tmp_path, use):
    printed = snc("policy", "recipe", use)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.startswith("# ")
    assert "docs/uses.md" in printed.stdout
    (tmp_path / "recipe.toml").write_text(printed.stdout)
    for path, stdin in ((str(tmp_path / "recipe.toml"), None), ("-", printed.stdout)):
        put = snc(
            *("policy", "set", "--project", use, "--file", path, "--url", url, "--json"),
            stdin=stdin,
        )
        assert put.returncode == 0, put.stderr
        entries = json.loads(put.stdout)["policy"]["entries"]
        assert len(entries) == printed.stdout.count("[[entries]]") > 0
        assert {entry["action"] for entry in entries} <= {"rescale", "normalize", "cap"}


def test_a_file_that_is_no_toml_is_one_sentence(tmp_path):
    (tmp_path / "torn.toml").write_text("[[entries]\n")
    down = "http://127.0.0.1:9"
    for path, stdin in ((str(tmp_path / "torn.toml"), None), ("-", "entries")):
        done = snc("policy", "set", "r", "--file", path, "--url", down, stdin=stdin)
        assert "must be TOML in UTF-8" in failed(done)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--entry", "no threshold"), "PATTERN=THRESHOLD"),
        (("--entry", "*=fast"), "threshold"),
        (("--entry", "*=-1"), "threshold"),
        (("--entry", "*=nan"), "threshold"),
        (("--entry", "*=1:explode"), "action"),
        (("--file", "/nowhere/policy.json"), "cannot read"),
        ((), "--entry"),
    ],
)
def test_a_wrong_policy_is_refused_before_it_is_sent(options, says):
    done = snc("policy", "set", "r", *options, "--url", "http://127.0.0.1:9")
    assert says in failed(done)


def test_a_run_that_does_not_exist_is_one_sentence(url):
    assert "(404)" in failed(snc("layers", "nobody", "--url", url))
    assert "(404)" in failed(snc("history", "alpha", "nothing", "--url", url))


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_service_that_is_down_is_one_sentence():
    down = f"http://127.0.0.1:{closed_port()}"
    for arguments in (("runs",), ("events", "r", "--follow"), ("policy", "get", "r")):
        said = failed(snc(*arguments, "--url", down))
        assert "no service answers" in said
        assert "snc serve" in said


@pytest.mark.parametrize("wrong", ["", "foo", "ftp://x", "http://", "http://[::1", "http://a:b"])
def test_a_url_that_is_none_is_one_sentence(wrong):
    assert "URL must be http://" in failed(snc("runs", "--url", wrong))


def test_something_else_that_answers_is_not_taken_for_the_service():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

        thread = threading.Thread(target=answer)
        thread.start()
        said = failed(snc("runs", "--url", f"http://127.0.0.1:{server.getsockname()[1]}"))
        thread.join()
    assert "is not this service" in said


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_serve_ends_on_a_signal_and_keeps_what_it_stored(end, tmp_path):
    with serving(tmp_path / "snc.db", end=end) as url:
        assert httpx.get(f"{url}/readyz").status_code == 200
        post(url, "kept", steps=[0], layers=["a", "b"])
    with serving(tmp_path / "snc.db") as url:
        assert [r["run"] for r in httpx.get(f"{url}/api/v1/runs").json()["items"]] == ["kept"]


def test_a_port_that_is_taken_is_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = snc("serve", f"--port={port}", f"--store=sqlite:///{tmp_path / 'snc.db'}")
    assert f"127.0.0.1:{port}" in failed(done)
    assert not (tmp_path / "snc.db").exists()


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "text.db").write_text("this is no database, and it is long enough to be read")
    for store in (tmp_path, tmp_path / "missing" / "snc.db", tmp_path / "text.db"):
        said = failed(snc("serve", "--port=0", f"--store=sqlite:///{store}"))
        assert "SNC_STORE" in said


@pytest.mark.parametrize(
    ("options", "extra", "names"),
    [
        (("--store=nothing",), {}, "SNC_STORE"),
        (("--store=mysql://x",), {}, "store"),
        (("--host=0.0.0.0",), {}, "--insecure"),
        ((), {"SNC_PORT": "many"}, "SNC_PORT"),
        ((), {"SNC_METRICS_SERIES": "-1"}, "SNC_METRICS_SERIES"),
        (("--host=256.1.1.1", "--insecure"), {}, "256.1.1.1"),
    ],
)
def test_a_wrong_setting_is_one_sentence(options, extra, names, tmp_path):
    store = {"SNC_STORE": f"sqlite:///{tmp_path / 'snc.db'}"}
    done = snc("serve", *options, **{"SNC_PORT": "0", **store, **extra})
    assert names in failed(done)


def test_insecure_listens_elsewhere_and_prints_a_url_that_works(tmp_path):
    with serving(tmp_path / "snc.db", "--host=0.0.0.0", "--insecure") as url:
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_command_of_another_package_gets_the_remaining_arguments():
    done = snc("demo", "--help")
    assert done.returncode == 0, done.stderr
    assert "usage: snc demo" in done.stdout


def without(tmp_path: Path, module: str) -> dict[str, str]:
    """Return an environment in which ``module`` cannot be imported."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{module!r}] = None\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_without_rich_a_table_says_what_to_install_and_json_works(url, tmp_path):
    bare = without(tmp_path, "rich.console")
    said = failed(snc("runs", "--url", url, **bare))
    assert "pip install 'spectral-norm-constraint[service]'" in said
    done = snc("runs", "--json", "--url", url, **bare)
    assert json.loads(done.stdout)["items"]


def test_without_the_service_extra_serve_says_what_to_install(tmp_path):
    said = failed(snc("serve", **without(tmp_path, "uvicorn")))
    assert "pip install 'spectral-norm-constraint[service]'" in said


def test_without_torch_the_demo_says_what_to_install(tmp_path):
    said = failed(snc("demo", **without(tmp_path, "torch")))
    assert "pip install 'spectral-norm-constraint[demo]'" in said


def test_a_reader_that_goes_away_is_no_fault(url):
    done = subprocess.run(
        f"{sys.executable} -m snc_service.cli layers alpha --json --url {url} | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
    )
    assert done.stdout.strip() == "{"
    assert done.stderr == ""


def test_a_sparkline_spans_its_values_and_marks_what_is_not_finite():
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█"
    assert sparkline([5.0, 5.0]) == "▁▁"
    assert sparkline([1.0, None, float("nan"), float("inf"), 2.0]) == "▁xxx█"
    assert sparkline([None]) == "x"
    assert sparkline([]) == ""
    assert sparkline([1.0, None, None, 2.0], [0, 0, 3, 0]) == "▁ x█"


def test_a_name_cannot_drive_the_terminal():
    assert "\x1b" not in clean("\x1b[2J\r\nname")


def test_main_returns_a_status_for_callers_in_python(capsys):
    assert main(["runs", "--url", "nonsense"]) == 1
    assert capsys.readouterr().err.startswith("snc: ")
