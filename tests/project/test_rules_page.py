"""The page on rules says what is shipped, and its files and commands are taken."""

import json
import re
from pathlib import Path

import pytest

from snc_service.detect.planned import RELATIVE
from snc_service.wire import RuleSettings
from snc_service.wire.rule_settings import SHIPPED

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rules.md").read_text()
_ROW = re.compile(
    r"^\| `(\w+)` \| .* \| ([0-9.]+) \| (\d+) \| (\d+) \| (info|warning|critical) \|$", re.M
)


def test_the_table_holds_every_rule_with_what_it_is_set_to():
    shown = {
        name: (float(limit), int(rows), int(armed), severity)
        for name, limit, rows, armed, severity in _ROW.findall(PAGE)
    }
    assert shown == {
        name: (rule.limit, rule.for_rows, rule.armed, rule.severity)
        for name, rule in SHIPPED.items()
    }


def test_what_annotations_do_not_mute_is_named():
    (sentence,) = re.findall(r"The other rules stay on: .*?\.", PAGE, re.S)
    assert set(re.findall(r"`(\w+)`", sentence)) == set(SHIPPED) - RELATIVE


def test_the_file_on_the_page_is_taken():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads TOML with tomli")
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    changes = RuleSettings.parse(tomllib.loads(text)).changes()["rules"]
    assert changes["lr_jump"] == {"on": False}
    assert set(changes["sigma_growth"]) == {"limit", "for_rows", "severity"}


def test_the_body_on_the_page_is_json():
    (body,) = re.findall(r"-d '(\{.*?\})'", PAGE)
    assert set(json.loads(body)) == {"step", "text", "quiet_steps"}
