"""Tiles: every form returns every bit; golden bytes of each form stay readable."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import bits

from snc_service.store import tiles
from snc_service.store.downsampling import Partial
from snc_service.wire import ABSENT

SPECIAL = np.array([0x7FC00001, 0x7FC00000, 0x7F800001, 0xFFC12345, 0x7F800000, 0xFF800000,
                    0x80000000, 0, 1, 0x007FFFFF, 0x7F7FFFFF], np.uint32)  # fmt: skip


def golden_values() -> np.ndarray:
    """Two layers of a slow walk with one of each special number."""
    ramp = (1 + np.arange(64, dtype=np.float32) / 256).astype(np.float32)
    values = np.stack([ramp, 3 - ramp])
    values.view(np.uint32)[1, 5 : 5 + len(SPECIAL)] = SPECIAL
    return values


# Bytes written by the release that introduced the form: its readers must outlive its writers.
GOLDEN = {
    tiles.PCODEC: (
        "70636f21030007200401057f0000107105804100001e90270300fcff0304ffffff7f820f0010001030000082"
        "017e000080bf598c5f0f68414b909684f8e9d7d3b26c113911e2fa01e01f00540100000000100018f6030000"
        "e9cfe5f202148d24fbff7f9f0000c08fbffaff7d0000003ffd0000000000"
    ),
    tiles.ZLIB: (
        "78016360a010fc070226c6bfe56520fa0fc35f109f0440a1ed0c0c20bb80e4ce9d201a0849040c8c9401b0fb"
        "5b18ea6b6b21f6f393e8a17a12d5a32b6f0009000d01dafe0f180eff48350f00c6a88228"
    ),
}


@pytest.mark.parametrize("form", GOLDEN)
def test_golden_bytes_of_every_form_are_read(form):
    if form == tiles.PCODEC:
        pytest.importorskip("pcodec", reason="install pcodec to read its tiles")
    got = tiles.decode(form, bytes.fromhex(GOLDEN[form]), 64)
    np.testing.assert_array_equal(bits(got), bits(golden_values()))


def test_the_golden_values_are_what_they_were():
    digest = hashlib.sha256(golden_values().astype("<f4").tobytes()).hexdigest()
    assert digest == "40bc69b934077ca861e36c69bad73f493866d7ff1443b0d5c7e548d2303f2f90"


@st.composite
def columns(draw):
    """Float32 [1..16, 1..1024] of random bits, walks, constants and special numbers."""
    rows, n = draw(st.integers(1, 16)), draw(st.integers(1, 1_024))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["bits", "walk", "constant"]))
    if kind == "bits":
        values = rng.integers(0, 2**32, (rows, n), dtype=np.uint32).view(np.float32)
    elif kind == "walk":
        walk = 1 + np.cumsum(rng.standard_normal((rows, n)) * 2e-3, axis=1)
        values = walk.astype(np.float32)
    else:
        values = np.full((rows, n), rng.standard_normal(), np.float32)
    for _ in range(draw(st.integers(0, 20))):
        values.view(np.uint32)[rng.integers(rows), rng.integers(n)] = rng.choice(SPECIAL)
    return values


@settings(deadline=None, max_examples=60)
@given(columns(), st.sampled_from([None, *tiles.FORMS]))
def test_every_form_returns_every_bit(values, form):
    if form == tiles.PCODEC:
        pytest.importorskip("pcodec", reason="install pcodec to test its tiles")
    number, data = tiles.encode(values, form)
    assert form in (None, number)
    got = tiles.decode(number, data, values.shape[1])
    assert got.shape == values.shape
    np.testing.assert_array_equal(bits(got), bits(values))


@given(columns())
@settings(deadline=None, max_examples=20)
def test_a_tile_is_never_larger_than_its_values(values):
    assert len(tiles.encode(values)[1]) <= values.nbytes


def test_a_slow_walk_shrinks_by_half_and_a_constant_to_nothing():
    walk = 1 + np.cumsum(np.random.default_rng(0).standard_normal((16, 1_024)) * 2e-3, axis=1)
    for form in (tiles.ZLIB, None):
        assert len(tiles.encode(walk.astype(np.float32), form)[1]) < 2.4 * walk.size
        assert len(tiles.encode(np.ones((16, 1_024), np.float32), form)[1]) < 400


def test_a_smooth_schedule_and_a_constant_with_exceptions_take_differences_that_suit_them():
    """In first differences the one takes 1.29 bytes per value, the other 0.023."""
    pytest.importorskip("pcodec", reason="install pcodec to test its tiles")
    rng = np.random.default_rng(0)
    bends = np.cumsum(np.cumsum(rng.standard_normal((16, 1_024)) * 1e-6, axis=1), axis=1)
    smooth = (1 + bends + 1e-7 * rng.standard_normal(bends.shape)).astype(np.float32)
    scale = np.where(rng.random((16, 1_024)) < 0.01, 0.9, 1).astype(np.float32)
    for values, most in ((smooth, 0.9), (scale, 0.018)):
        form, data = tiles.encode(values)
        assert len(data) < most * values.size
        np.testing.assert_array_equal(bits(tiles.decode(form, data, 1_024)), bits(values))


def test_without_pcodec_the_standard_library_does_it(monkeypatch):
    monkeypatch.setattr(tiles, "pcodec", None)
    values = golden_values()
    form, data = tiles.encode(values)
    assert form == tiles.ZLIB
    np.testing.assert_array_equal(bits(tiles.decode(form, data, 64)), bits(values))
    with pytest.raises(ValueError, match="needs the pcodec package"):
        tiles.decode(tiles.PCODEC, b"", 64)


def test_a_form_of_the_future_says_what_it_needs():
    with pytest.raises(ValueError, match="newer release"):
        tiles.decode(99, b"", 64)


@settings(deadline=None, max_examples=40)
@given(columns(), st.sampled_from([1, 4, 32]))
def test_a_rollup_returns_extremes_and_counts_exactly_and_means_rounded(values, group):
    steps = np.arange(values.shape[1])
    with np.errstate(over="ignore"):
        wanted = Partial.of_values(steps, values).grouped(steps // group)
        got = tiles.decode_rollup(tiles.encode_rollup(wanted), wanted.keys)
    for name in ("keys", "low", "high", "finite", "nonfinite"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name))
    largest = np.where(wanted.finite > 0, np.fmax(np.abs(wanted.low), np.abs(wanted.high)), 0)
    off = np.abs(got.total - wanted.total)
    assert (off <= 2.0**-23 * largest.astype(np.float64) * wanted.finite + 1e-44 * group).all()


def test_equal_counts_take_four_bytes():
    values = np.ones((16, 1_024), np.float32)
    steps = np.arange(1_024)
    full = tiles.encode_rollup(Partial.of_groups(steps // 32, values))
    values[3, 500] = ABSENT
    one_missing = tiles.encode_rollup(Partial.of_groups(steps // 32, values))
    assert len(one_missing) > len(full)
    assert full.endswith(bytes([32, 0, 0, 0, 0, 0, 0, 0]))
