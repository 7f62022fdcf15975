"""Events of one run under two settings, side by side."""

import pytest

from snc_service.backtest.compare import compare
from snc_service.store.types import Event


def event(step: int, rule: str = "sigma_jump") -> Event:
    return Event(step, rule, "warning", "moved", "fc.weight", 1, 0.2, 0.1)


def pairs(before, after):
    return [
        (change.kind, change.before and change.before.step, change.after and change.after.step)
        for change in compare(before, after)
    ]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([], [], []),
        ([10], [10], [("same", 10, 10)]),
        ([10], [], [("gone", 10, None)]),
        ([], [10], [("added", None, 10)]),
        ([10], [4], [("moved", 10, 4)]),
        ([10, 100], [98], [("gone", 10, None), ("moved", 100, 98)]),
        ([100], [10, 98], [("added", None, 10), ("moved", 100, 98)]),
        ([10, 20], [20, 30], [("moved", 10, 30), ("same", 20, 20)][::-1]),
    ],
)
def test_events_of_a_rule_are_paired_nearest_first(before, after, expected):
    assert pairs([event(s) for s in before], [event(s) for s in after]) == expected


def test_events_of_two_rules_are_never_the_same_event():
    found = pairs([event(10, "sigma_jump")], [event(10, "sigma_growth")])
    assert found == [("added", None, 10), ("gone", 10, None)]


def test_moved_is_in_steps_and_negative_where_it_comes_earlier():
    (change,) = compare([event(10)], [event(4)])
    assert (change.moved, change.event.step) == (-6, 4)
    (change,) = compare([event(10)], [])
    assert (change.moved, change.event.step) == (None, 10)
