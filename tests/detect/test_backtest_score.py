"""The scoring protocol, on alarms and labels whose score is counted by hand."""

import math

import pytest

from snc_service.backtest.labels import Label
from snc_service.backtest.score import Score, episodes


def scored(label: Label, active, num_rows: int = 400) -> Score:
    score = Score()
    score.add(label, active, num_rows)
    return score


def faulty(cause: int = 100, symptom: int | None = 200, **more) -> Label:
    return Label("r", False, cause, symptom, **more)


@pytest.mark.parametrize(
    ("active", "opened"),
    [
        ([], []),
        ([0], [0]),
        ([7, 8, 9], [7]),
        ([10, 60], [10]),
        ([10, 61], [10, 61]),
        ([10, 50, 100, 151], [10, 151]),
    ],
)
def test_an_episode_opens_more_than_50_rows_after_the_last_active_one(active, opened):
    assert episodes(active) == opened


def test_every_episode_of_a_healthy_run_is_a_false_alarm():
    score = scored(Label("r", True), [20, 21, 300], 400)
    assert (score.false_alarms, score.healthy_rows) == (2, 400)
    assert (score.late_false_alarms, score.late_healthy_rows) == (1, 250)
    assert score.false_rate == pytest.approx(50)
    assert score.late_false_rate == pytest.approx(40)
    assert score.noisy == {"r": 2}
    assert score.symptoms == 0


def test_before_its_cause_a_faulty_run_is_a_healthy_one():
    score = scored(faulty(cause=160), [10, 155, 190])
    assert (score.false_alarms, score.healthy_rows) == (2, 160)
    assert (score.late_false_alarms, score.late_healthy_rows) == (1, 10)
    assert score.leads == [10]


def test_an_alarm_that_began_before_the_cause_and_goes_on_is_a_detection_too():
    score = scored(faulty(), range(90, 120))
    assert (score.false_alarms, score.leads) == (1, [100])


@pytest.mark.parametrize(
    ("row", "lead"),
    [(99, None), (100, 100), (195, 5), (200, 0), (205, -5), (206, None)],
)
def test_detection_is_an_alarm_from_the_cause_to_5_rows_after_the_symptom(row, lead):
    score = scored(faulty(), [row])
    assert score.leads == ([] if lead is None else [lead])
    assert score.missed == (["r"] if lead is None else [])


@pytest.mark.parametrize(("symptom", "is_gradual"), [(119, False), (120, True)])
def test_a_fault_is_gradual_if_its_symptom_comes_20_rows_after_its_cause(symptom, is_gradual):
    score = scored(faulty(100, symptom), [110])
    assert score.gradual == is_gradual
    assert score.recall == 1
    assert math.isnan(score.gradual_recall) != is_gradual


def test_missed_runs_count_in_the_shares_of_leads_but_not_in_their_median():
    score = Score()
    for symptom, active in ((150, [145]), (150, [148]), (300, [150]), (300, [])):
        score.add(faulty(100, symptom), active, 400)
    assert (score.gradual, len(score.gradual_leads)) == (4, 3)
    assert score.gradual_recall == 0.75
    assert score.lead_share(5) == 0.5
    assert score.median_lead == 5


def test_a_faulty_run_without_a_symptom_counts_before_its_cause_only():
    score = scored(faulty(symptom=None), [50, 300])
    assert (score.false_alarms, score.healthy_rows, score.symptoms) == (1, 100, 0)


def test_a_run_that_ended_before_its_cause_has_only_the_rows_it_had():
    assert scored(faulty(cause=500, symptom=None), [], 300).healthy_rows == 300


def test_excluded_runs_are_named_and_not_counted():
    score = scored(faulty(excluded="regime_change"), [10, 150])
    assert score.excluded == {"r": "regime_change"}
    assert (score.false_alarms, score.symptoms, score.healthy_rows) == (0, 0, 0)


def test_shares_of_nothing_are_null_in_json():
    shown = Score().as_dict()
    assert shown["recall"] is None
    assert shown["false_alarms_per_10k"] is None
    assert shown["median_lead"] is None
