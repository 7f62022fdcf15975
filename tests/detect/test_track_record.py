"""The record of each rule is shipped, counts what it says, and is the table of the page."""

import json
import re
from pathlib import Path

from snc_service.detect.rules import LOOKS
from snc_service.detect.track_record import FILE, LEAST_EVENTS, record, records, sentence

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "rules.md").read_text()


def test_a_record_sums_the_tasks_of_its_rule_and_is_never_more_right_than_it_spoke():
    shipped = json.loads(FILE.read_text())
    assert set(shipped) <= set(LOOKS)
    for rule, known in records().items():
        right, events = map(sum, zip(*shipped[rule].values(), strict=True))
        assert (known.right, known.events) == (right, events)
        assert LEAST_EVENTS <= events
        assert right <= events


def test_a_rule_that_counts_facts_or_spoke_rarely_has_none():
    assert record("breach") is None
    assert sentence("guard") is None
    assert record("no such rule") is None


def test_the_sentence_says_how_many_events_were_right():
    known = record("sigma_jump")
    assert f"right in {known.right} of {known.events} " in sentence("sigma_jump")


def test_the_table_of_the_page_is_the_record():
    shown = re.findall(r"^\| `(\w+)` \| (\d+) of (\d+) \|", PAGE, re.M)
    assert {rule: (int(right), int(events)) for rule, right, events in shown} == {
        rule: (known.right, known.events) for rule, known in records().items()
    }
