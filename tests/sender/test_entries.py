"""A row in the spool: whole and bit for bit, or thinned to what matters most."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from snc_client.layer_row import LayerRow
from snc_client.sender.queue.spool_codec import active, packed, thinned, unpacked
from snc_service.wire import ABSENT

METRICS = ("sigma", "threshold", "scale", "residual")


def row_of(values, metrics=METRICS, **scalars) -> LayerRow:
    return LayerRow(7, metrics, np.asarray(values, np.float32), scalars, 1_763_800_000.5)


@pytest.mark.parametrize(
    ("sigma", "threshold", "scale", "is_active"),
    [
        (0.89, 1.0, 1.0, False),
        (0.91, 1.0, 1.0, True),
        (2.0, 1.0, 1.0, True),  # a breach
        (0.5, 1.0, 0.99, True),  # rescaled
        (np.nan, 1.0, 1.0, True),
        (np.inf, ABSENT, ABSENT, True),
        (ABSENT, ABSENT, ABSENT, False),  # not measured
        (5.0, ABSENT, ABSENT, False),  # observed, without a threshold
        (5.0, np.inf, 1.0, False),
    ],
)
def test_a_layer_is_active_near_its_threshold_past_it_rescaled_or_broken(
    sigma, threshold, scale, is_active
):
    assert active(row_of([[sigma], [threshold], [scale], [0.1]])).tolist() == [is_active]


def test_without_thresholds_on_the_wire_only_broken_layers_are_active():
    assert active(row_of([[1e9, np.nan]], ("sigma",))).tolist() == [False, True]
    assert active(row_of([[1e9, np.nan]], ("grad_norm",))).tolist() == [False, False]


bit_patterns = arrays.arrays(np.uint32, (4, 9), elements=st.integers(0, 2**32 - 1))


@given(bit_patterns)
@settings(max_examples=100, deadline=None)
def test_a_whole_row_comes_back_bit_for_bit(patterns):
    row = row_of(patterns.view(np.float32), loss=0.5)
    back = unpacked(packed(row), METRICS, 9)
    assert back.values.tobytes() == row.values.tobytes()
    assert (back.step, back.time, back.scalars) == (row.step, row.time, row.scalars)
    assert back.spared == row.spared == 0


@given(bit_patterns)
@settings(max_examples=100, deadline=None)
def test_a_thinned_row_keeps_scalars_and_active_layers_bit_for_bit_and_counts_the_rest(patterns):
    row = row_of(patterns.view(np.float32), loss=0.5, lr=0.1)
    entry, weight = thinned(packed(row), row.num_values, shape=(4, 9), metrics=METRICS)
    back = unpacked(entry, METRICS, 9)
    kept = active(row)
    assert back.values[:, kept].tobytes() == row.values[:, kept].tobytes()
    assert (back.values[:, ~kept].view(np.uint32) == ABSENT.view(np.uint32)).all()
    assert (back.step, back.time, back.scalars) == (row.step, row.time, row.scalars)
    assert weight == back.num_values == 4 * np.count_nonzero(kept) + 2
    assert thinned(entry, weight, shape=(4, 9), metrics=METRICS) == (entry, weight)
