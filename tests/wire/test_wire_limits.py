"""The wire's limits: the largest of everything passes, and one more is refused under its field."""

import json
from dataclasses import fields

import numpy as np
import pytest

from snc_service.wire import (
    Batch,
    LayerSpec,
    LayerTable,
    Policy,
    Threshold,
    WireError,
    decode,
    encode,
)
from snc_service.wire.checks import (
    MAX_COLUMNS,
    MAX_LAYERS,
    MAX_STEPS,
    MAX_WRITER_BYTES,
)
from snc_service.wire.policy import MAX_ENTRIES

HASH = "0" * 32


def batch_of(num_steps=1, num_metrics=1, num_layers=1, num_scalars=0, **changes) -> Batch:
    given = {
        "writer": "w",
        "seq": 0,
        "layers": HASH,
        "steps": tuple(range(num_steps)),
        "metrics": tuple(f"m{i}" for i in range(num_metrics)),
        "values": np.ones((num_metrics, num_steps, num_layers), np.float32),
        "scalars": tuple(f"s{i}" for i in range(num_scalars)),
        "scalar_values": np.ones((num_scalars, num_steps), np.float32),
    }
    return Batch(**(given | changes))


def refused(field: str):
    """Expect a `WireError` that names exactly this field."""
    return pytest.raises(WireError, match=rf"^{field} ")


def test_every_field_of_a_batch_comes_back():
    batch = batch_of(
        2, 2, 3, 2, seq=9, times=(1.5, 2.5), skipped=3, dropped=4, attempt=0, writer='é "w"'
    )
    back = decode(encode(batch))
    for each in fields(Batch):
        np.testing.assert_array_equal(getattr(back, each.name), getattr(batch, each.name))


@pytest.mark.parametrize(
    ("most", "more", "field"),
    [
        ({"num_steps": MAX_STEPS}, {"num_steps": MAX_STEPS + 1}, "steps"),
        ({"num_metrics": MAX_COLUMNS}, {"num_metrics": MAX_COLUMNS + 1}, "metrics"),
        ({"num_scalars": MAX_COLUMNS - 1}, {"num_scalars": MAX_COLUMNS}, "metrics"),
        ({"num_layers": MAX_LAYERS}, {"num_layers": MAX_LAYERS + 1}, "values"),
        ({"attempt": 2**31 - 1}, {"attempt": 2**31}, "attempt"),
        ({"writer": "w" * MAX_WRITER_BYTES}, {"writer": "w" * (MAX_WRITER_BYTES + 1)}, "writer"),
        ({"writer": "é" * 64}, {"writer": "é" * 65}, "writer"),
    ],
)
def test_the_largest_batch_is_taken_and_a_larger_one_refused(most, more, field):
    batch = batch_of(**most)
    assert decode(encode(batch)).num_values == batch.num_values
    with refused(field):
        batch_of(**more)


def test_more_layers_than_a_table_can_have_are_refused_by_the_length_of_the_body():
    data = encode(batch_of(num_layers=MAX_LAYERS))
    with refused("body"):
        decode(data + b"\0" * 4)


def test_another_magic_is_refused():
    with refused("body"):
        decode(b"SNC2" + encode(batch_of())[4:])


def with_header(text: bytes, values: bytes = b"") -> bytes:
    return b"SNC1" + len(text).to_bytes(4, "little") + text + values


def parts_of(data: bytes) -> tuple[bytes, bytes]:
    """Return header and values of a batch."""
    end = 8 + int.from_bytes(data[4:8], "little")
    return data[8:end], data[end:]


@pytest.mark.parametrize("more", [1, 4])
def test_a_header_that_does_not_end_on_a_multiple_of_eight_is_refused(more):
    text, values = parts_of(encode(batch_of()))
    with refused("header"):
        decode(with_header(text + b" " * more, values))


def test_a_header_that_reaches_past_the_body_is_refused():
    text, _ = parts_of(encode(batch_of()))
    with refused("header"):
        decode(b"SNC1" + (len(text) + 8).to_bytes(4, "little") + text)


def test_true_is_no_time():
    text, values = parts_of(encode(batch_of()))
    header = json.loads(text) | {"times": [True]}
    text = json.dumps(header).encode()
    with refused("times"):
        decode(with_header(text + b" " * (-(8 + len(text)) % 8), values))


@pytest.mark.parametrize("code", [0x00, 0x1F, 0x7F, 0x80, 0x9F])
def test_control_characters_are_refused_in_names(code):
    with refused("writer"):
        batch_of(writer=f"a{chr(code)}b")


@pytest.mark.parametrize("code", [0x20, 0x7E, 0xA0, 0x2028, 0x1F600])
def test_other_characters_are_taken(code):
    assert decode(encode(batch_of(writer=f"a{chr(code)}b"))).writer == f"a{chr(code)}b"


def test_a_table_has_at_most_65536_layers_and_a_shape_eight_sizes():
    names = [f"l{i}" for i in range(MAX_LAYERS + 1)]
    assert len(LayerTable.of_names(names[:-1]).layers) == MAX_LAYERS
    with refused("layers"):
        LayerTable.of_names(names)
    table = LayerTable((LayerSpec("a", "conv", (1,) * 8),))
    assert LayerTable.parse(table.body) == table
    with refused("layers.shape"):
        LayerTable.parse(b'{"layers": [{"name": "a", "shape": [1, 1, 1, 1, 1, 1, 1, 1, 1]}]}')


def test_a_policy_has_at_most_1024_entries():
    entries = [{"pattern": "*", "threshold": 1}] * MAX_ENTRIES
    assert len(Policy.parse({"entries": entries}).entries) == MAX_ENTRIES


@pytest.mark.parametrize(("last", "beyond"), [(1e-30, 0.99e-30), (1e30, 1.01e30)])
def test_a_threshold_is_a_number_that_float32_can_hold_with_room(last, beyond):
    assert Threshold.parse(last).factor == last
    with refused("threshold"):
        Threshold.parse(beyond)
