"""``snc top`` and ``snc completion`` in real processes; a terminal is a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from feed import Feed
from test_cli import environment, failed, serving, snc

HOSTILE = "[bold]x[/bold]\N{RIGHT-TO-LEFT OVERRIDE}"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("top") / "snc.db") as url:
        feed = Feed(url, "alpha", ["fc1.weight", HOSTILE])
        feed.send(range(40), sigma=[1.0, 3.0], threshold=2.0, scalars={"loss": 0.25})
        Feed(url, "beta", ["fc1.weight"]).send(range(3), sigma=1.0, threshold=2.0)
        yield url


def test_a_run_shows_its_worst_layer_first_with_loss_and_incidents(url):
    done = snc("top", "alpha", "--url", url)
    assert done.returncode == 0, done.stderr
    head, *_ = done.stdout.splitlines()
    assert re.match(r"alpha {2}active {2}step 39 {2}2 layers .*loss 0.25", head)
    assert done.stdout.index("[bold]x[/bold]\N{REPLACEMENT CHARACTER}") < done.stdout.index("fc1")
    assert "Open incidents, the worst first" in done.stdout
    assert "exceeds its threshold" in done.stdout


def test_without_a_run_all_active_runs_are_shown_worst_first(url):
    done = snc("top", "--url", url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("alpha") < done.stdout.index("beta")


def test_an_incident_names_the_step_of_the_event_that_it_quotes(url):
    feed = Feed(url, "two", ["fc1.weight"])
    feed.send(range(40), sigma=np.where(np.arange(40) < 30, 1.0, 3.0)[:, None], threshold=2.0)
    feed.send(range(40, 45), sigma=np.nan, threshold=2.0)
    shown = snc("top", "two", "--url", url).stdout
    (line,) = (line for line in shown.splitlines() if "critical  two" in line)
    (incident,) = json.loads(snc("top", "two", "--json", "--url", url).stdout)["incidents"]
    newest = incident["events"][-1]
    assert (incident["step"], newest["step"]) == (30, 40)
    assert line.strip().startswith(f"critical  two  step 40  {newest['message'][:20]}")


def test_json_has_what_is_shown(url):
    seen = json.loads(snc("top", "alpha", "--json", "--url", url).stdout)
    assert [layer["layer"] for layer in seen["layers"]] == [HOSTILE, "fc1.weight"]
    assert seen["run"]["run"] == "alpha"


def test_a_run_that_does_not_exist_is_one_sentence(url):
    assert "nobody" in failed(snc("top", "nobody", "--url", url))


def read_until(terminal: int, text: str) -> str:
    """Return what a terminal received, once ``text`` is in it."""
    seen, deadline = b"", time.monotonic() + 30
    while text not in seen.decode(errors="replace"):
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 65_536)
    return seen.decode(errors="replace")


def test_in_a_terminal_it_is_drawn_again_until_ctrl_c(url):
    feed = Feed(url, "live", ["fc1.weight"])
    feed.send([0], sigma=1.0)
    terminal, child = pty.openpty()
    command = [sys.executable, "-m", "snc_service.cli", "top", "live", "--every", "1"]
    process = subprocess.Popen(
        [*command, "--url", url], stdout=child, stderr=child, env=environment(TERM="xterm")
    )
    try:
        os.close(child)
        read_until(terminal, "step 0")
        feed.send([777], sigma=1.0)
        read_until(terminal, "step 777")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_completion_script_is_valid_and_knows_every_command(shell):
    done = snc("completion", shell)
    assert done.returncode == 0, done.stderr
    for command in ("top", "layers", "demo", "audit", "completion"):
        assert re.search(rf"\b{command}\b", done.stdout)
    if shutil.which(shell):
        checked = subprocess.run([shell, "-n"], input=done.stdout, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


def test_bash_completes_a_command():
    script = snc("completion", "bash").stdout
    asked = f"{script}\nCOMP_WORDS=(snc lay) COMP_CWORD=1; _shtab_snc; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True)
    assert done.stdout.strip() == "layers", done.stderr


@pytest.mark.parametrize(("typed", "meant"), [("lairs", "layers"), ("demoo", "demo")])
def test_a_mistyped_command_gets_a_suggestion(typed, meant):
    done = snc(typed)
    assert done.returncode == 2
    assert done.stderr.startswith("snc: did you mean ")
    assert meant in done.stderr.splitlines()[0]
    assert "did you mean" not in snc("zzzzqqq").stderr


def test_a_bound_of_an_earlier_step_is_marked_in_the_table_of_layers(url):
    feed = Feed(url, "aged", ["fresh", "old"])
    feed.send([1], sigma=2.0, sigma_upper=[2.5, 1.5], bound_age=[0.0, 3.0])
    done = snc("layers", "aged", "--url", url)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if "linear" in line]
    assert ["1.5 aged" in row for row in rows] == ["old" in row for row in rows]
    items = json.loads(snc("layers", "aged", "--json", "--url", url).stdout)["items"]
    assert {item["sigma_upper"] for item in items} == {2.5, 1.5}
