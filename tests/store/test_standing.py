"""Where a run at work stands, whatever bits its values are."""

import numpy as np

from snc_service.store.sql.ingest.standing import Standing
from snc_service.store.sql.series.latest_values import Newest


def test_a_signalling_nan_beside_a_measured_layer_is_counted_and_nothing_is_raised():
    """The suite makes numpy's warnings errors: to widen this NaN to float64 is one."""
    sigma = np.array([0x7F800001, 0, 0x40400000], "<u4").view(np.float32)
    values = np.stack([sigma, np.array([2.0, 2.0, 2.0], np.float32)])
    newest = Newest(np.zeros(3, np.int64), np.zeros(3, np.int64), ("sigma", "threshold"), values)
    standing = Standing.of_tables(3, [(np.arange(3, dtype=np.int32), newest)])
    assert standing.worst() == (1.5, 2, 1)
