"""What is one incident: rules within 50 steps, however long they last, until all are quiet."""

import pytest
from alert_cases import NOW, entry, facts, incident, memory
from store_cases import batch, table

from snc_service.alerts import incidents
from snc_service.alerts.incidents import MAX_ENTRIES, is_over, resolved
from snc_service.detect.memory import quiet_steps
from snc_service.detect.rules import advance
from snc_service.detect.running import NEVER
from snc_service.store.types import RunRows

LATER = NOW + 60


def gather(run, open_one, *entries, told=lambda incident: ("chat",)):
    return incidents.gather(run, open_one, entries, told=told, now=LATER)


def rules(change):
    return [each.rule for each in change.incident.entries]


def test_rules_within_50_steps_are_one_incident_named_by_the_first():
    run = facts(pulse=memory(60, {"breach": 50, "sigma_growth": 30, "loss_divergence": 0}))
    first = entry(10, "breach", layer="fc2.weight")
    (change,) = gather(run, None, first, entry(30, "sigma_growth"), entry(60, "loss_divergence"))
    assert rules(change) == ["breach", "sigma_growth", "loss_divergence"]
    assert change.incident.entries[0] == first
    assert (change.incident.id, change.incident.revision, change.incident.state) == (0, 1, "open")
    assert change.receivers == ("chat",)
    assert change.wake


def test_rules_more_than_50_steps_apart_are_two_incidents():
    run = facts(pulse=memory(61, {"breach": 51, "sigma_jump": 0}))
    first, second = gather(run, None, entry(10, "breach"), entry(61, "sigma_jump"))
    assert (rules(first), first.incident.state) == (["breach"], "resolved")
    assert (rules(second), second.incident.state) == (["sigma_jump"], "open")


def test_an_incident_lasts_as_long_as_its_rule_fires_though_that_raised_one_event():
    """The breach began at step 10 and still goes on at step 400: what comes then belongs to it."""
    began = incident(entry(10, "breach"))
    run = facts(pulse=memory(400, {"breach": 0, "sigma_jump": 0}))
    assert not is_over(began, run, NOW)
    (change,) = gather(run, began, entry(400, "sigma_jump", "critical"))
    assert rules(change) == ["breach", "sigma_jump"]


def test_a_rule_that_speaks_again_had_been_quiet():
    """Its own firing now says nothing of how long the incident went on before."""
    began = incident(entry(10, "breach"))
    run = facts(pulse=memory(200, {"breach": 0}))
    over, anew = gather(run, began, entry(200, "breach"))
    assert (over.incident.id, over.incident.state) == (1, "resolved")
    assert (anew.incident.id, anew.incident.entries[0].step) == (0, 200)


def test_two_incidents_that_come_by_late_are_still_two():
    """Both rules fired at 10 and again at 122, and nobody looked until step 180."""
    run = facts(pulse=memory(180, {"breach": 58, "sigma_jump": 58}))
    events = [entry(step, rule) for step in (10, 122) for rule in ("breach", "sigma_jump")]
    first, second = gather(run, None, *events)
    assert [each.step for each in first.incident.entries] == [10, 10]
    assert [each.step for each in second.incident.entries] == [122, 122]


def test_what_joins_wakes_nobody_unless_it_is_worse():
    run = facts(pulse=memory(20, {"breach": 0, "sigma_growth": 0, "sigma_jump": 0}))
    began = incident(entry(10, "breach"))
    (mild,) = gather(run, began, entry(20, "sigma_growth"))
    assert (mild.wake, mild.incident.severity, mild.incident.revision) == (False, "warning", 2)
    (bad,) = gather(run, began, entry(20, "sigma_jump", "critical"))
    assert (bad.wake, bad.incident.severity) == (True, "critical")
    (inhibited,) = gather(run, bad.incident, entry(20, "breach"))
    assert (inhibited.wake, inhibited.incident.severity) == (False, "critical")


def test_becoming_worse_takes_back_what_somebody_looked_after():
    run = facts(pulse=memory(20, {"breach": 0}))
    known = incident(entry(10, "breach"), acknowledged_at=NOW, acknowledged_by="anna")
    (mild,) = gather(run, known, entry(20, "sigma_growth"))
    assert mild.incident.acknowledged_by == "anna"
    (bad,) = gather(run, known, entry(20, "sigma_jump", "critical"))
    assert (bad.incident.acknowledged_at, bad.incident.acknowledged_by) == (None, "")


def test_a_flood_of_warnings_does_not_leave_out_what_makes_it_critical():
    run = facts(pulse=memory(1, {"breach": 0}))
    flood = [entry(1, "dropped", id=i) for i in range(1, MAX_ENTRIES + 31)]
    (change,) = gather(run, None, *flood, entry(1, "nonfinite", "critical", id=99))
    assert len(change.incident.entries) == MAX_ENTRIES
    assert rules(change)[-1] == "nonfinite"
    assert change.incident.omitted == 31


def test_an_info_is_no_incident_but_a_notice_to_those_who_ask():
    info = entry(5, "policy_changed", "info")
    assert gather(facts(), None, info, told=lambda incident: ()) == []
    (notice,) = gather(facts(), None, info)
    assert (notice.incident.state, notice.incident.severity) == ("notice", "info")
    began = incident(entry(4))
    (alone,) = gather(facts(pulse=memory(5, {"breach": 0})), began, info)
    assert alone.incident.state == "notice"


def test_a_flood_of_events_is_counted_not_listed():
    run = facts(pulse=memory(1, {"breach": 0}))
    flood = [entry(1, "dropped", id=i) for i in range(1, MAX_ENTRIES + 31)]
    (change,) = gather(run, None, *flood)
    assert len(change.incident.entries) == MAX_ENTRIES
    assert change.incident.omitted == 30


def test_steps_that_go_back_meet_the_same_incident_again():
    run = facts(pulse=memory(501, {"breach": 0}, trained=1))
    began = incident(entry(900, "breach"))
    (change,) = gather(run, began, entry(501, "breach"))
    assert [each.step for each in change.incident.entries] == [900, 501]


@pytest.mark.parametrize(("quiet", "over"), [(49, False), (50, True), (NEVER, True)])
def test_an_incident_is_over_after_50_quiet_steps(quiet, over):
    began = incident(entry(10, "breach"), entry(12, "sigma_jump", "critical"))
    run = facts(pulse=memory(400, {"breach": quiet, "sigma_jump": 300}))
    assert is_over(began, run, NOW) is over


@pytest.mark.parametrize(("rows", "over"), [(4, False), (5, True)])
def test_sparse_rows_count_in_steps(rows, over):
    run = facts(pulse=memory(400, {"breach": rows}, gap=10))
    assert is_over(incident(entry(10, "breach")), run, NOW) is over


@pytest.mark.parametrize(("step", "over"), [(59, False), (60, True)])
def test_what_no_rule_remembers_counts_from_its_own_step(step, over):
    run = facts(pulse=memory(step, {}))
    assert is_over(incident(entry(10, "dropped")), run, NOW) is over


@pytest.mark.parametrize(("trained", "over"), [(49, False), (50, True)])
def test_after_steps_went_back_50_steps_of_the_new_attempt_must_be_quiet(trained, over):
    """The new attempt has forgotten the rules: nothing fired in it yet."""
    run = facts(pulse=memory(300 + trained, {}, trained=trained))
    assert is_over(incident(entry(900, "breach")), run, NOW) is over
    run = facts(pulse=memory(300 + trained, {"breach": NEVER}, trained=trained))
    assert is_over(incident(entry(900, "breach")), run, NOW) is over


def test_a_run_that_was_silent_and_speaks_again_is_well():
    silent = incident(entry(10, "run_silent"))
    assert not is_over(silent, facts("silent"), NOW + 3_600)
    assert is_over(silent, facts("active"), NOW)
    both = incident(entry(10, "run_silent"), entry(11, "breach"))
    assert not is_over(both, facts(pulse=memory(20, {"breach": 9})), NOW)


def test_nobody_waits_for_ever_for_a_run_that_is_gone():
    began = incident(entry(10, "breach"))
    for state, seconds in (("finished", 300), ("failed", 300), ("silent", 86_400)):
        run = facts(state, pulse=memory(12, {"breach": 0}))
        assert not is_over(began, run, NOW + seconds - 1)
        assert is_over(began, run, NOW + seconds)


def test_a_state_of_another_version_ends_nothing():
    assert not is_over(incident(entry(10)), facts(pulse=b'{"version": 1}\n'), NOW)
    assert not is_over(incident(entry(10)), facts(), NOW)


def test_a_resolved_incident_says_when():
    over = resolved(incident(entry(10), revision=3), LATER)
    assert (over.state, over.resolved_at, over.updated_at, over.revision) == (
        "resolved",
        LATER,
        LATER,
        4,
    )


def test_how_long_rules_are_quiet_is_read_from_what_detection_really_keeps():
    """Steps 0, 2, 4, ...: a breach at 6 and 8, none after that."""
    layers = table("fc1.weight", "fc2.weight")
    state = None
    for seq in range(20):
        step = 2 * seq
        sigma = 3.0 if step in (6, 8) else 1.0
        one = batch(layers, seq, [step], {"sigma": [[sigma, 1.0]], "threshold": [[2.0, 2.0]]})
        state, _ = advance(state, RunRows("r", one, layers.names, 0, seq == 0))
    quiet = quiet_steps(state)
    assert quiet.step == 38
    assert quiet.rules["breach"] == 30
    assert quiet.seen == 38
    assert quiet_steps(state.partition(b"\n")[0]) == quiet  # the first line is enough
    assert quiet_steps(None).step is None
