"""Detection's memory: its bytes, its gaps, and layers that come and go."""

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from snc_service.detect.memory import COLUMNS, MOST_LAYERS, Memory, quiet_steps, row_gap
from snc_service.detect.running import NEVER, Deviation, Firing, Rise


def filled(num_layers: int) -> Memory:
    memory = Memory(step=41, gap=2, trained=7, largest_lr=0.1, firing={"breach": Firing(3, 9)})
    memory.loss.score(2.5, 0.1)
    places = memory.places(tuple(f"l{i}" for i in range(num_layers)))
    rng = np.random.default_rng(0)
    for name in ("start", "newest", "mean"):
        memory.columns[name][places] = rng.standard_normal(num_layers)
    return memory


def test_quiet_rules_are_counted_in_steps():
    quiet = quiet_steps(filled(3).dump())
    assert (quiet.step, quiet.seen, dict(quiet.rules)) == (41, 7 * 2, {"breach": 9 * 2})
    assert quiet_steps(None) == quiet_steps(b'{"version": 1}')


def test_a_pulse_says_what_the_whole_state_says_at_any_step():
    for step in (None, 0, ord("{"), 2**40):
        memory = filled(3)
        memory.step = step
        assert quiet_steps(memory.pulse()) == quiet_steps(memory.dump())
    assert quiet_steps(memory.pulse()[:-4]) == quiet_steps(None)


def test_a_memory_survives_its_bytes():
    for num_layers in (0, 1, 1_000):
        memory = filled(num_layers)
        again = Memory.load(memory.dump())
        assert again.dump() == memory.dump()
        assert (again.step, again.gap, again.trained, again.largest_lr) == (41, 2, 7, 0.1)
        assert (again.loss, again.firing) == (memory.loss, memory.firing)
        for name in COLUMNS:
            np.testing.assert_array_equal(again.columns[name], memory.columns[name])


def test_a_layer_costs_its_key_and_the_columns_that_are_known():
    grown = len(filled(2_000).dump()) - len(filled(1_000).dump())
    assert grown == 1_000 * (8 + 3 * 4)
    # 12 once layers left their band, 12 with 1-d parameters or weights that stand still, and 4
    # where norms are measured by turns.
    assert 8 + 4 * len(COLUMNS) == 44 + 12 + 12 + 4


def test_nothing_yet_and_another_version_are_a_fresh_memory():
    for state in (None, b"", b"{}", b'{"version": 1, "firing": {}}', b'{"version": 99}\nxyz'):
        assert Memory.load(state).dump() == Memory().dump()


def test_layers_join_by_name_in_any_order():
    memory = Memory()
    first = memory.places(("a", "b"))
    memory.columns["start"][first] = [1.0, 2.0]
    places = memory.places(("c", "b", "a"))
    start = memory.columns["start"][places]
    assert np.isnan(start[0])
    assert start[1:].tolist() == [2.0, 1.0]
    assert memory.places(("a", "b")).tolist() == first.tolist()


def test_layers_that_never_come_back_are_forgotten_when_there_are_too_many():
    memory = Memory()
    for wave in range(3):
        memory.places(tuple(f"{wave}.{i}" for i in range(MOST_LAYERS // 2 + 1)))
        assert len(memory.keys) <= MOST_LAYERS
        assert all(len(column) == len(memory.keys) for column in memory.columns.values())


def test_a_new_attempt_keeps_what_layers_were_at_the_start():
    memory = filled(3)
    start = memory.columns["start"].copy()
    for name in ("floor", "norm_floor"):
        memory.columns[name][:] = [0.0, 1.0, 2.0]
    memory.restart()
    for name in ("floor", "norm_floor"):
        assert memory.columns[name].tolist() == [0.0, 1.0, 2.0]
    np.testing.assert_array_equal(memory.columns["start"], start)
    np.testing.assert_array_equal(memory.columns["newest"], start)
    assert np.isnan(memory.columns["mean"]).all()
    assert (memory.step, memory.trained, memory.largest_lr, memory.firing) == (None, 0, 0.0, {})
    assert memory.loss == Deviation()


def test_rows_are_usually_as_far_apart_as_the_smaller_of_the_last_two_gaps():
    memory = Memory()
    gaps, usual = memory.gaps((0, 10, 20))
    assert (gaps.tolist(), usual.tolist()) == ([1, 10, 10], [1, 10, 10])
    gaps, usual = memory.gaps((500, 510))  # a lost batch
    assert (gaps.tolist(), usual.tolist()) == ([480, 10], [10, 10])
    gaps, usual = memory.gaps((500, 510))  # another writer's rows of the same steps
    assert usual.tolist() == [10, 10]


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=200), st.integers(1, 4), st.integers(5, 50), st.data())
def test_hysteresis_is_the_same_row_by_row_and_at_once(above, hold, rest, data):
    once, piecewise = Firing(), Firing()
    column = np.array(above, np.bool_)
    holds, rests = np.full(len(above), hold), np.full(len(above), rest)
    expected = once.advance(column, holds, rests).edges
    found, start = [], 0
    while start < len(above):
        stop = start + data.draw(st.integers(1, 50))
        part = slice(start, stop)
        fired = piecewise.advance(column[part], holds[part], rests[part])
        found += [start + i for i in fired.edges]
        start = stop
    assert found == expected
    assert piecewise == once
    # By definition: fires at the hold-th row in a row, speaks after more than rest quiet ones.
    fires = [
        row for row in range(len(above)) if row + 1 >= hold and all(above[row + 1 - hold : row + 1])
    ]
    gaps = [b - a - 1 for a, b in zip([-NEVER, *fires], fires, strict=False)]
    assert expected == [row for row, gap in zip(fires, gaps, strict=True) if gap > rest]


def test_a_deviation_is_blind_to_scale_and_robust_to_one_outlier():
    rng = np.random.default_rng(1)
    values = rng.standard_normal(500)
    one, other = Deviation(), Deviation()
    for value in values:
        score = one.score(value, 1e-11)
        np.testing.assert_allclose(other.score(128 * value, 128e-11), score, rtol=1e-9)
    calm = [one.score(value, 1e-9) for value in rng.standard_normal(200)]
    assert max(np.abs(calm)) < 6
    assert one.score(1_000.0, 1e-9) > 500
    assert abs(one.mean) < 1  # 5 deviations x 3 % is all that an outlier moves


def test_a_state_of_the_release_before_goes_on_and_what_it_did_not_know_begins():
    memory = filled(5)
    line, _, data = memory.dump().partition(b"\n")
    values = json.loads(line)
    for new in ("rise", "onset", "onset_newest", "annotated", "begun"):
        del values[new]
    old = json.dumps({**values, "version": 2}).encode() + b"\n" + data
    again = Memory.load(old)
    assert (again.step, again.trained, again.firing) == (41, 7, memory.firing)
    np.testing.assert_array_equal(again.columns["start"], memory.columns["start"])
    assert np.isnan(again.columns["long_mean"]).all()
    assert (again.rise, again.onset, again.annotated) == (Rise(), None, [])
    assert quiet_steps(old) == quiet_steps(memory.dump())


def test_the_gap_between_rows_is_read_without_the_layers():
    assert row_gap(filled(3).dump()) == 2
    assert row_gap(None) == row_gap(Memory().dump()) == 1
