"""Runs take turns at a receiver: a storm of one delays the alarm of another by one delivery."""

from snc_service.alerts.turns import RECENT_SECONDS, Turns
from snc_service.store.types.incidents import DueRun


def due(run, severity="warning", project="p", since=0.0):
    return DueRun(run, project, severity, since)


def order(turns, waiting, now=1.0, gone=True):
    """Tell until nothing waits; return the runs. What is told waits no more, unless not gone."""
    told = []
    while waiting and len(told) < 20:
        each = turns.next(waiting, now)
        turns.told(each, now)
        told.append(each.run)
        now += 0.2
        if gone or each.run != "storm":
            waiting.remove(each)
    return told


def test_what_waits_longest_is_told_first_where_all_are_alike():
    waiting = [due("c", since=3.0), due("a", since=1.0), due("b", since=2.0)]
    assert order(Turns(20), waiting) == ["a", "b", "c"]


def test_the_severe_comes_first():
    waiting = [due("a", since=1.0), due("b", "critical", since=2.0), due("c", "info")]
    assert order(Turns(20), waiting) == ["b", "a", "c"]


def test_a_storm_of_one_run_even_if_it_is_critical_waits_behind_everybody_else():
    waiting = [due("storm", "critical", since=-1.0), due("a", since=5.0), due("b", "info")]
    assert order(Turns(20), waiting, gone=False)[:4] == ["storm", "a", "b", "storm"]


def test_a_storm_of_many_runs_of_one_project_waits_behind_an_equal_one_of_another():
    waiting = [due(f"s{i}", "critical", "stormy") for i in range(9)]
    waiting.append(due("calm", "critical", "other", since=9.0))
    assert order(Turns(20), waiting)[1] == "calm"


def test_after_a_minute_a_run_counts_like_any_other():
    turns = Turns(20)
    turns.told(due("storm"), 1.0)
    storm, other = due("storm", "critical"), due("other", since=9.0)
    assert turns.next([storm, other], 2.0).run == "other"
    assert turns.next([storm, other], 1.0 + RECENT_SECONDS).run == "storm"


def test_after_so_many_messages_in_a_minute_comes_a_digest_and_then_one_a_minute():
    turns, storm, other = Turns(3), due("storm", "critical"), due("other", since=9.0)
    assert [turns.told(storm, at) for at in (1.0, 2.0, 3.0)] == [False, False, False]
    assert turns.next([storm], 4.0).run == "storm"
    assert turns.told(storm, 4.0)  # the digest
    assert turns.next([storm], 63.0) is None
    assert turns.next([storm, other], 63.0).run == "other"
    assert turns.next([storm], 64.0).run == "storm"
    assert not turns.told(storm, 64.0)  # the minute is over


def test_a_storm_that_goes_on_is_told_of_once_a_minute():
    turns, storm, told = Turns(3), due("storm"), []
    for second in range(1, 601):
        if turns.next([storm], float(second)) is not None:
            turns.told(storm, float(second))
            told.append(second)
    assert len(told) <= 10 * (3 + 1)
    assert not turns._of_run or len(turns._of_run["storm"]) <= 3


def test_runs_that_were_told_of_long_ago_are_forgotten():
    turns = Turns(3)
    for number in range(100):
        turns.told(due(f"run{number}"), 1.0)
    turns.next([], 1.0 + RECENT_SECONDS)
    assert not turns._told
    assert not turns._of_run
