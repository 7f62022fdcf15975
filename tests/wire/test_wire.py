"""The wire: a golden vector, round trips, and nothing but WireError for hostile bytes."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snc_service.wire import (
    ABSENT,
    Batch,
    LayerSpec,
    LayerTable,
    Policy,
    Threshold,
    WireError,
    absent,
    decode,
    encode,
)

TABLE = LayerTable(
    (LayerSpec("fc1.weight", "linear", (64, 32)), LayerSpec("fc2.weight", "linear", (10, 64)))
)
GOLDEN_HEADER = (
    b'{"layers":"372f338c57a4c0c8b8577e5c66c60493","metrics":["sigma","residual"],'
    b'"scalars":["loss"],"seq":7,"steps":[100,110],"writer":"w-01"}'
)
GOLDEN_SHA256 = "9b092965ee9b550b54a0fb91f392d47dc7c473ef7ee7f579d33b8877f85dbaea"


def golden_batch() -> Batch:
    values = [[[1.5, 2.0], [1.25, np.inf]], [[0.001, ABSENT], [0.002, np.nan]]]
    return Batch(
        writer="w-01",
        seq=7,
        layers=TABLE.hash,
        steps=(100, 110),
        metrics=("sigma", "residual"),
        values=np.array(values, np.float32),
        scalars=("loss",),
        scalar_values=np.array([[0.75, 0.5]], np.float32),
    )


def test_the_golden_batch_has_the_documented_bytes():
    data = encode(golden_batch())
    assert data[8 : 8 + 137] == GOLDEN_HEADER
    assert len(data) == 192
    assert hashlib.sha256(data).hexdigest() == GOLDEN_SHA256


def test_the_golden_batch_decodes_bit_for_bit():
    batch = golden_batch()
    back = decode(encode(batch))
    np.testing.assert_array_equal(back.values.view("<u4"), batch.values.view("<u4"))
    assert (back.writer, back.seq, back.steps) == ("w-01", 7, (100, 110))
    np.testing.assert_array_equal(absent(back.values)[1], [[False, True], [False, False]])


def test_a_real_nan_never_becomes_absent():
    impostor = np.array([0x7FC00001, 0xFFC00001, 0x7F800001], "<u4").view("<f4").reshape(1, 1, 3)
    batch = Batch("w", 0, TABLE.hash, (0,), ("sigma",), impostor)
    bits = decode(encode(batch)).values.view("<u4").ravel()
    np.testing.assert_array_equal(bits, [0x7FC00001, 0x7FC00000, 0x7FC00000])


@given(st.binary(max_size=400))
def test_random_bytes_raise_wire_error_and_nothing_else(data):
    for body in (data, b"SNC1" + data, encode(golden_batch())[:40] + data):
        with pytest.raises(WireError):
            decode(body)


@given(st.integers(0, 191), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_as_a_valid_batch(position, byte):
    data = bytearray(encode(golden_batch()))
    data[position] = byte
    try:
        batch = decode(bytes(data))
    except WireError:
        return
    assert batch.num_values == 10


def with_header(**changes) -> bytes:
    header = json.loads(GOLDEN_HEADER) | changes
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 8)
    return b"SNC1" + len(text).to_bytes(4, "little") + text + encode(golden_batch())[152:]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"writer": ""}, "writer"),
        ({"writer": "a\nb"}, "writer"),
        ({"writer": 3}, "writer"),
        ({"seq": -1}, "seq"),
        ({"seq": 1.0}, "seq"),
        ({"seq": True}, "seq"),
        ({"seq": 2**53}, "seq"),
        ({"layers": "xyz"}, "layers"),
        ({"layers": None}, "layers"),
        ({"steps": []}, "steps"),
        ({"steps": [100, 100]}, "steps"),
        ({"steps": [100, 2**70]}, "steps"),
        ({"steps": "100"}, "steps"),
        ({"metrics": ["sigma", "sigma"]}, "metrics"),
        ({"metrics": ["Sigma", "residual"]}, "metrics"),
        ({"metrics": [["sigma"], "residual"]}, "metrics"),
        ({"scalars": []}, "body"),
        ({"metrics": []}, "body"),
        ({"times": [1.0]}, "times"),
        ({"times": [1.0, "now"]}, "times"),
        ({"times": [1.0, 1e300]}, "times"),
        ({"dropped": -1}, "dropped"),
        ({"attempt": "1"}, "attempt"),
        ({"dtype": "f8"}, "dtype"),
    ],
)
def test_a_wrong_header_names_its_field(changes, field):
    with pytest.raises(WireError) as caught:
        decode(with_header(**changes))
    assert caught.value.field == field


def test_a_lying_length_is_refused_before_anything_is_allocated():
    data = encode(golden_batch())
    for body in (data[:-1], data + b"\0", data + b"\0" * 4, data[:8], b""):
        with pytest.raises(WireError):
            decode(body)


def test_a_bare_nan_in_the_header_is_refused():
    with pytest.raises(WireError, match="bare NaN"):
        decode(with_header(times=[float("nan"), 1.0]))


def test_a_layer_table_survives_its_own_canonical_form():
    back = LayerTable.parse(TABLE.body)
    assert back == TABLE
    assert back.hash == TABLE.hash == "372f338c57a4c0c8b8577e5c66c60493"


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"layers": 3}',
        b'{"layers": [3]}',
        b'{"layers": [{"name": ""}]}',
        b'{"layers": [{"name": "a\\u0000"}]}',
        b'{"layers": [{"name": "a"}, {"name": "a"}]}',
        b'{"layers": [{"name": "a", "shape": [-1]}]}',
        b'{"layers": [{"name": "a", "kind": 1}]}',
        b'{"layers": [{"name": "\\ud800"}]}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_malformed_layer_table_is_refused(body):
    with pytest.raises(WireError):
        LayerTable.parse(body)


@pytest.mark.parametrize(
    ("text", "factor", "unit"),
    [
        (2, 2.0, "absolute"),
        (0.5, 0.5, "absolute"),
        ("3x init", 3.0, "init"),
        ("1.5 x rms", 1.5, "rms"),
        ("auto", 1.0, "auto"),
    ],
)
def test_thresholds_are_numbers_or_multiples(text, factor, unit):
    assert Threshold.parse(text) == Threshold(factor, unit)


@pytest.mark.parametrize(
    "value",
    [0, -1, float("nan"), float("inf"), 10**400, True, None, [], "3", "3x", "3x foo", "2x auto"],
)
def test_a_wrong_threshold_is_refused(value):
    with pytest.raises(WireError, match="threshold"):
        Threshold.parse(value)


def test_the_first_matching_entry_wins_and_slices_follow_their_weight():
    policy = Policy.parse(
        {
            "entries": [
                {"pattern": "head.*", "threshold": None, "action": "observe"},
                {"pattern": "*.in_proj_weight", "threshold": 2.0},
                {"pattern": "*", "threshold": "3x init"},
            ]
        }
    )
    assert policy.entry("head.weight").action == "observe"
    assert policy.entry("attn.in_proj_weight[q]").threshold == 2.0
    assert policy.entry("fc.weight").threshold == "3x init"
    assert Policy.parse(policy.as_dict()) == policy


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {"entries": {}},
        {"entries": [], "more": 1},
        {"entries": [{"pattern": "*"}]},
        {"entries": [{"pattern": "", "threshold": 1}]},
        {"entries": [{"pattern": "*", "threshold": 1, "action": "clip"}]},
        {"entries": [{"pattern": "*", "threshold": 1, "limit": 2}]},
        {"entries": [{"pattern": "*", "threshold": 1}] * 1025},
    ],
)
def test_a_wrong_policy_is_refused(value):
    with pytest.raises(WireError):
        Policy.parse(value)
