"""The rules: what fires, what stays quiet, and one sentence a person understands."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snc_service.detect.rules import advance
from snc_service.store.types import Event, RunRows
from snc_service.wire import ABSENT, Batch, LayerTable

LAYERS = ("fc1.weight", "fc2.weight", "fc3.weight")


def rows(
    metrics=None,
    scalars=None,
    *,
    steps=None,
    layers=LAYERS,
    attempt=0,
    new_attempt=False,
) -> RunRows:
    metrics = {name: np.asarray(v, np.float32) for name, v in (metrics or {}).items()}
    scalars = {name: np.asarray(v, np.float32) for name, v in (scalars or {}).items()}
    num_steps = len(next(iter([*metrics.values(), *scalars.values()])))
    batch = Batch(
        writer="w",
        seq=0,
        layers=LayerTable.of_names(layers).hash,
        steps=tuple(range(num_steps)) if steps is None else tuple(steps),
        metrics=tuple(metrics),
        values=np.stack(list(metrics.values()))
        if metrics
        else np.empty((0, num_steps, 0), np.float32),
        scalars=tuple(scalars),
        scalar_values=np.stack(list(scalars.values())) if scalars else np.empty((0, 0), np.float32),
    )
    return RunRows("run", batch, tuple(layers), attempt, new_attempt)


def events_of(given_rows: RunRows, rule: str | None = None) -> list[Event]:
    events = advance(None, given_rows)[1]
    return [event for event in events if rule in (None, event.rule)]


def test_quiet_rows_raise_nothing():
    assert events_of(rows({"sigma": np.ones((9, 3)), "threshold": np.full((9, 3), 2.0)})) == []


def test_a_breach_names_the_worst_layer_how_many_and_the_value_against_the_limit():
    (event,) = events_of(
        rows(
            {
                "sigma": [[1.0, 1.0, 1.0], [2.2, 3.41, 1.0]],
                "threshold": [[2.0, 3.0, 2.0]] * 2,
                "scale": [[1.0, 1.0, 1.0], [0.9, 0.87, 1.0]],
            },
            steps=[100, 101],
        )
    )
    assert (event.rule, event.severity, event.step) == ("breach", "warning", 101)
    assert (event.layer, event.layers) == ("fc2.weight", 2)
    assert (event.value, event.limit) == (pytest.approx(3.41), 3.0)
    assert event.message == (
        "fc2.weight: sigma 3.41 exceeds its threshold 3.00 (2 layers) and was held"
    )


def test_a_breach_that_nobody_acted_on_does_not_say_it_was_held():
    for scale in (1.0, ABSENT, np.nan):
        (event,) = events_of(
            rows({"sigma": [[4, 1, 1]], "threshold": [[2, 2, 2]], "scale": [[scale] * 3]})
        )
        assert event.message == "fc1.weight: sigma 4.00 exceeds its threshold 2.00"


def test_the_worst_layer_is_the_one_with_the_largest_ratio_not_the_largest_sigma():
    (event,) = events_of(rows({"sigma": [[100, 3, 1]], "threshold": [[99, 1, 2]]}))
    assert (event.layer, event.value) == ("fc2.weight", 3.0)


def test_sigma_is_compared_in_float32_as_on_the_device():
    threshold = np.float32(0.1)
    just_above = np.nextafter(threshold, np.float32(1))
    at_limit = rows({"sigma": [[threshold] * 3], "threshold": [[threshold] * 3]})
    above = rows({"sigma": [[just_above] * 3], "threshold": [[threshold] * 3]})
    assert events_of(at_limit) == []
    (event,) = events_of(above)
    # The sentence shows enough digits to tell the two numbers apart.
    assert event.message == (
        "fc1.weight: sigma 0.10000001 exceeds its threshold 0.10000000 (3 layers)"
    )


def test_a_layer_without_a_threshold_never_breaches():
    for threshold in (ABSENT, np.nan, np.inf):
        assert events_of(rows({"sigma": [[9, 9, 9]], "threshold": [[threshold] * 3]})) == []
    assert events_of(rows({"sigma": [[9, 9, 9]]})) == []


def test_an_infinite_sigma_is_both_not_finite_and_a_breach_and_carries_no_number():
    events = events_of(rows({"sigma": [[np.inf, 1, 1]], "threshold": [[2, 2, 2]]}))
    assert [(e.rule, e.layer, e.value) for e in events] == [
        ("nonfinite", "fc1.weight", None),
        ("breach", "fc1.weight", None),
    ]
    assert events[1].message == "fc1.weight: sigma infinite exceeds its threshold 2.00"


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "minus infinite")]
)
def test_a_sigma_that_is_not_finite_is_critical_and_named(value, word):
    (event,) = events_of(rows({"sigma": [[1, 1, 1], [1, value, value]]}, steps=[5, 6]))
    assert (event.rule, event.severity, event.step) == ("nonfinite", "critical", 6)
    assert (event.layer, event.layers, event.value) == ("fc2.weight", 2, None)
    assert event.message == f"fc2.weight: sigma is {word} (2 layers)"


def test_a_loss_that_is_not_finite_is_an_event_without_a_layer():
    (event,) = events_of(rows({"sigma": [[1, 1, 1]]}, {"loss": [np.nan]}))
    assert (event.rule, event.layer, event.layers) == ("nonfinite", None, 0)
    assert event.message == "loss is NaN"


def test_a_batch_of_scalars_alone_is_judged():
    (event,) = events_of(rows(None, {"loss": [0.5, np.inf]}, layers=()))
    assert (event.step, event.message) == (1, "loss is infinite")


def test_what_was_not_measured_is_not_a_fault():
    assert events_of(rows({"sigma": [[ABSENT] * 3]}, {"loss": [ABSENT]})) == []


def test_a_gradient_that_is_not_finite_is_seen_before_sigma_is():
    (event,) = events_of(rows({"sigma": [[1, 1, 1]], "grad_norm": [[1, np.nan, 1]]}))
    assert event.message == "fc2.weight: grad_norm is NaN"


def breaching(pattern: list[bool], **kwargs) -> RunRows:
    sigma = np.where(np.array(pattern)[:, None], 3.0, 1.0) * np.ones((1, 3))
    return rows({"sigma": sigma, "threshold": np.full(sigma.shape, 2.0)}, **kwargs)


def test_one_incident_is_one_event_and_the_rule_speaks_again_after_more_than_50_quiet_rows():
    for quiet, expected in ((50, [3]), (51, [3, 3 + 10 + 51])):
        pattern = [False] * 3 + [True] * 10 + [False] * quiet + [True] * 4
        assert [event.step for event in events_of(breaching(pattern), "breach")] == expected


def test_rows_that_are_ten_steps_apart_rest_for_fifty_steps_not_fifty_rows():
    for quiet, events in ((5, 1), (6, 2)):
        pattern = [True] + [False] * quiet + [True]
        found = events_of(breaching(pattern, steps=range(0, 10 * len(pattern), 10)), "breach")
        assert len(found) == events


def test_rows_a_thousand_steps_apart_that_all_breach_are_still_one_incident():
    assert len(events_of(breaching([True] * 40, steps=range(0, 40_000, 1000)))) == 1


def test_one_lost_batch_does_not_end_an_incident():
    # Steps 0, 1, then 200, 201...: rows are a step apart, so four quiet rows are no rest.
    steps = [0, 1, 200, 201, 202, 203, 204]
    pattern = [True, True, False, False, False, False, True]
    assert len(events_of(breaching(pattern, steps=steps))) == 1


def test_a_new_attempt_starts_with_a_clean_memory():
    state, first = advance(None, breaching([True], steps=[100]))
    _, same = advance(state, breaching([True], steps=[101]))
    _, after = advance(state, breaching([True], steps=[50], attempt=1, new_attempt=True))
    assert (len(first), len(same), len(after)) == (1, 0, 1)


def test_rules_do_not_share_their_incidents():
    state, _ = advance(None, breaching([True]))
    _, events = advance(state, rows({"sigma": [[np.nan, 1, 1]]}, steps=[1]))
    assert [event.rule for event in events] == ["nonfinite"]


def test_a_state_of_an_unknown_version_is_forgotten_not_fatal():
    _, events = advance(b'{"version": 999, "firing": 7}', breaching([True]))
    assert len(events) == 1


def test_fifty_thousand_layers_are_one_event_and_a_small_state():
    layers = tuple(f"blocks.{i}.weight" for i in range(50_000))
    sigma = np.ones((4, 50_000), np.float32)
    sigma[2, 40_000:] = 5.0
    sigma[2, 49_999] = 7.0
    sigma[3, 12] = np.nan
    wide = rows({"sigma": sigma, "threshold": np.full_like(sigma, 2.0)}, layers=layers)
    state, events = advance(None, wide)
    assert [(e.rule, e.layer, e.layers) for e in events] == [
        ("breach", "blocks.49999.weight", 10_000),
        ("nonfinite", "blocks.12.weight", 1),
    ]
    assert len(state) < 50_000 * 44


VALUE = st.one_of(
    st.sampled_from([1.0, 1.9, 2.1, 5.0]),
    st.sampled_from([float("nan"), float("inf"), float(ABSENT)]),
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_events_do_not_depend_on_how_rows_are_cut_into_batches(data):
    num_rows = data.draw(st.integers(2, 130))
    gaps = data.draw(st.lists(st.integers(1, 9), min_size=num_rows, max_size=num_rows))
    steps = np.cumsum(gaps).tolist()
    quiet = np.ones((num_rows, 3), np.float32)
    for _ in range(data.draw(st.integers(0, 12))):
        at = data.draw(st.tuples(st.integers(0, num_rows - 1), st.integers(0, 2)))
        quiet[at] = data.draw(VALUE)
    metrics = {"sigma": quiet, "threshold": np.full((num_rows, 3), 2.0, np.float32)}
    state, events = advance(None, rows(metrics, steps=steps))
    cuts = sorted(data.draw(st.sets(st.integers(1, num_rows - 1), max_size=6)))
    piecewise: list[Event] = []
    memory: bytes | None = None
    for start, stop in zip([0, *cuts], [*cuts, num_rows], strict=True):
        part = {name: column[start:stop] for name, column in metrics.items()}
        memory, found = advance(memory, rows(part, steps=steps[start:stop]))
        piecewise += found
    assert piecewise == events
    assert memory == state


def test_a_step_that_the_guard_undid_names_the_layer_that_went_furthest():
    (event,) = events_of(
        rows(
            {"guard": [[ABSENT] * 3, [0.2, 31.0, 1.5], [0.2, 0.1, 0.1]]},
            {"guard_vetoes": [ABSENT, 1, 0], "guard_rollbacks": [ABSENT, 0, 0]},
            steps=[40, 41, 42],
        )
    )
    assert (event.rule, event.severity, event.step) == ("guard", "warning", 41)
    assert (event.layer, event.layers, event.value) == ("fc2.weight", 2, 1)
    assert event.message == (
        "the guard undid step 41: fc2.weight went 31.0 times as far as it may (2 layers)"
    )


def test_a_roll_back_of_the_guard_is_critical_and_says_so_without_a_metric_too():
    (event,) = events_of(rows(scalars={"guard_rollbacks": [0, 1]}, steps=[7, 8], layers=()))
    assert (event.rule, event.severity, event.layer) == ("guard_rollback", "critical", None)
    assert event.message == "the guard rolled the weights back after step 8"


@pytest.mark.parametrize("value", [np.inf, -np.inf, -3.0, np.nan, ABSENT])
def test_a_count_of_vetoes_that_is_no_count_raises_nothing(value):
    assert events_of(rows(scalars={"guard_vetoes": [value]}, layers=())) == []
