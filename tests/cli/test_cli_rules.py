"""``snc rules``, ``onset``, ``annotate`` and the forecast in ``layers``, against a real service."""

import json
import math

import pytest
from test_cli import HOSTILE, failed, post, serving, snc

LAYERS = ["fc1.weight", HOSTILE]
TOML = '[rules.sigma_growth]\nlimit = 0.5\nseverity = "critical"\n\n[rules.lr_jump]\non = false\n'


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("rules") / "snc.db") as url:
        grown = [[math.exp(0.001 * step), 0.5 if step < 50 else 0.8] for step in range(80)]
        post(url, "alpha", steps=range(80), layers=LAYERS, sigma=grown)
        yield url


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rules.toml"
    path.write_text(TOML)
    return str(path)


def test_rules_that_are_set_are_shown_with_what_differs(url, file):
    done = snc("rules", "set", "alpha", "--file", file, "--url", url)
    assert done.returncode == 0, done.stderr
    assert "Rules version 1, set by anonymous" in done.stdout
    shown = snc("rules", "get", "alpha", "--url", url).stdout
    (line,) = [line for line in shown.splitlines() if "sigma_growth" in line]
    assert line.split() == [
        "sigma_growth",
        "0.5",
        "2",
        "20",
        "critical",
        "on",
        "limit,",
        "severity",
    ]
    (line,) = [line for line in shown.splitlines() if "lr_jump" in line]
    assert line.split()[-2:] == ["off", "on"]  # it is off, and that is what differs


def test_what_get_prints_as_json_can_be_given_to_set(url, file, tmp_path):
    snc("rules", "set", "--project", "demo", "--file", file, "--url", url)
    printed = snc("rules", "get", "--project", "demo", "--json", "--url", url).stdout
    again = tmp_path / "again.json"
    again.write_text(printed)
    done = snc("rules", "set", "--project", "demo", "--file", str(again), "--json", "--url", url)
    before, after = json.loads(printed), json.loads(done.stdout)
    assert after["rules"] == before["rules"]
    assert after["rules_version"] == before["rules_version"] + 1


def test_a_change_against_an_old_version_is_refused(url, file):
    options = ("--file", file, "--if-version", "9", "--url", url)
    assert "are version" in failed(snc("rules", "set", "alpha", *options))


def test_check_asks_no_service_and_says_what_a_file_changes(file):
    done = snc("rules", "check", "--file", file)
    assert done.returncode == 0, done.stderr
    assert "Changes of the shipped rules: 3" in done.stdout
    assert json.loads(snc("rules", "check", "--json", "--file", file).stdout) == {
        "rules": {"lr_jump": {"on": False}, "sigma_growth": {"limit": 0.5, "severity": "critical"}}
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[rules.sigma_jmp]\n", "rules.sigma_jmp is not known here: use nonfinite, breach,"),
        ("[rules.breach]\nlimits = 1\n", "rules.breach.limits is not known here: use limit,"),
        ("[rules.breach]\nlimit = -1\n", "rules.breach.limit must be a number from 0 to 1e+09"),
        ('[rules.breach]\non = "no"\n', "rules.breach.on must be true or false, got 'no'"),
        ("[rules.breach\n", "must be TOML in UTF-8"),
    ],
)
def test_the_key_that_is_wrong_is_named_in_one_sentence(text, said, tmp_path):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    assert said in failed(snc("rules", "check", "--file", str(path)))
    assert "cannot read" in failed(snc("rules", "check", "--file", str(tmp_path / "none.toml")))


def test_the_layer_that_went_first_is_listed_and_a_hostile_name_is_text(url):
    done = snc("onset", "alpha", "--url", url)
    assert "Layers of alpha that left their band, from step 50: 1" in done.stdout
    assert "sigma_jump" in done.stdout
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in done.stdout
    (item,) = json.loads(snc("onset", "alpha", "--json", "--url", url).stdout)["items"]
    assert (item["layer"], item["step"]) == (HOSTILE, 50)


def test_layers_say_when_they_will_reach_their_threshold(url):
    items = json.loads(snc("layers", "alpha", "--json", "--url", url).stdout)["items"]
    left = {item["layer"]: item["steps_to_threshold"] for item in items}
    assert left["fc1.weight"] == pytest.approx(math.log(1.2) / 0.001 - 79, rel=0.03)
    assert "steps_to_threshold" in snc("layers", "alpha", "--url", url).stdout


def test_a_planned_change_is_marked(url):
    done = snc("annotate", "alpha", "90", "new data", "--quiet-steps", "20", "--url", url)
    assert done.stdout == "Annotation 1 at step 90: new data\n"
    events = snc("events", "alpha", "--rule", "annotation", "--json", "--url", url).stdout
    (event,) = json.loads(events)["items"]
    assert (event["step"], event["message"], event["value"]) == (90, "new data", 20.0)
    assert "text must" in failed(snc("annotate", "alpha", "90", "a\nb", "--url", url))


def test_a_run_that_there_is_not_is_said_so(url, file):
    for arguments in (("onset", "gone"), ("rules", "get", "gone"), ("annotate", "gone", "1", "x")):
        assert "there is no run 'gone'" in failed(snc(*arguments, "--url", url))
