"""Recorded runs in files: what is read, and what a hostile file gets instead of memory."""

import io
import zipfile

import numpy as np
import pytest
from backtest_cases import LAYERS, course, save, trouble

from snc_service.backtest import files
from snc_service.backtest.files import read_run
from snc_service.backtest.replay import replay
from snc_service.wire import WireError


def array(value, **options) -> bytes:
    """Return the bytes of a .npy file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(value), **options)
    return file.getvalue()


def claim(shape, descr="<f4") -> bytes:
    """Return an array's header that claims a shape, and no data."""
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def archive(path, **members: bytes):
    """Write an .npz file out of the bytes of its members; names and sigma are there by default."""
    good = {"names": array(np.array(LAYERS)), "sigma": array(np.ones((4, 3), np.float32))}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for key, data in {**good, **members}.items():
            if data:
                file.writestr(f"{key}.npy", data)
    return path


def test_row_t_is_step_t_plus_1_and_s0_registers_at_step_0(tmp_path):
    metrics, scalars = course(30)
    save(tmp_path / "run.npz", metrics, scalars, s0=np.array([1.0, 2.0, 3.0]))
    first, *others = read_run(tmp_path / "run.npz", 7)
    assert (first.run, first.layers, first.batch.steps) == ("run", tuple(LAYERS), (0,))
    assert first.batch.metric("sigma").tolist() == [[1.0, 2.0, 3.0]]
    assert [rows.batch.steps for rows in others][:2] == [tuple(range(1, 8)), tuple(range(8, 15))]
    for name, column in metrics.items():
        got = np.concatenate([rows.batch.metric(name) for rows in others])
        assert np.array_equal(got, column)
    for name, column in scalars.items():
        assert np.array_equal(np.concatenate([r.batch.scalar(name) for r in others]), column)


def test_what_is_not_in_the_file_or_not_wanted_is_not_reported(tmp_path):
    archive(tmp_path / "a.npz")
    (rows,) = read_run(tmp_path / "a.npz")
    assert rows.batch.metrics == ("sigma",)
    metrics, scalars = course(10)
    save(tmp_path / "b.npz", metrics, scalars)
    (rows,) = read_run(tmp_path / "b.npz", without=["update_norm"])
    assert rows.batch.metrics == ("sigma", "frobenius", "grad_norm")


@pytest.mark.parametrize("size", [1, 3, 64, 300])
def test_events_do_not_depend_on_the_size_of_the_pieces(tmp_path, size):
    save(tmp_path / "run.npz", *trouble())
    (whole,) = replay(read_run(tmp_path / "run.npz", 1_000), [None])
    (found,) = replay(read_run(tmp_path / "run.npz", size), [None])
    assert found.events == whole.events
    assert found.fired == whole.fired
    assert len({event.rule for event in found.events}) >= 6


def test_float64_and_fortran_order_are_read_and_beyond_float32_is_infinite(tmp_path):
    sigma = np.asfortranarray(np.arange(12, dtype=np.float64).reshape(4, 3))
    sigma[0, 0] = 1e300
    archive(tmp_path / "a.npz", sigma=array(sigma))
    (rows,) = read_run(tmp_path / "a.npz")
    got = rows.batch.metric("sigma")
    assert got[0, 0] == np.inf
    assert np.array_equal(got[1:], sigma[1:].astype(np.float32))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"sigma": b""}, "a.npz: sigma must be there"),
        ({"names": b""}, "a.npz: names must be there"),
        ({"sigma": array(np.array([{}], object), allow_pickle=True)}, "must hold floating-point"),
        ({"names": array(np.array(["a", {}], object), allow_pickle=True)}, "must hold text"),
        ({"sigma": array(np.ones((4, 3), np.int32))}, "must hold floating-point numbers"),
        ({"sigma": array(np.ones((4, 3), np.complex64))}, "must hold floating-point numbers"),
        ({"sigma": array(np.ones(4, np.float32))}, "in 2 dimensions"),
        ({"sigma": array(np.ones((4, 2), np.float32))}, "must be rows x 3 layers"),
        ({"sigma": array(np.ones((0, 3), np.float32))}, "must be rows x 3 layers"),
        ({"fro": array(np.ones((5, 3), np.float32))}, r"a.npz: fro must be \[4, 3\]"),
        ({"loss": array(np.ones(3, np.float32))}, r"a.npz: loss must be \[4\]"),
        ({"s0": array(np.ones(4, np.float32))}, r"a.npz: s0 must be \[3\]"),
        ({"names": array(np.array(["a", "a", "b"]))}, "none of them twice"),
        ({"names": array(np.array(["a", "", "b"]))}, "must be a non-empty string"),
        ({"names": array(np.array(["a", "\x1b[2J", "b"]))}, "must not contain control"),
        ({"names": array(np.array(["a", "x" * 300, "b"]))}, "at most"),
        ({"sigma": claim((2**40, 3))}, "must hold at most"),
        ({"sigma": claim((2**40, 0))}, "must be rows x 3 layers"),
        ({"sigma": claim((1_000_000, 3))}, "must hold 3000000 values as its header says"),
        ({"sigma": claim((-1, 3))}, "must have a shape"),
        ({"names": claim((3,), "<U100000000")}, "must hold at most"),
        ({"sigma": b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65_535}, "must be an .npz file"),
        ({"sigma": b"\x93NUMPY\x07\x00"}, "must be a"),
        ({"sigma": b"PK"}, "must be an .npz file"),
    ],
)
def test_a_file_that_does_not_hold_what_it_should_is_refused(tmp_path, members, message):
    with pytest.raises(WireError, match=message):
        list(read_run(archive(tmp_path / "a.npz", **members)))


@pytest.mark.parametrize("content", [b"", b"no zip file", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(WireError, match=r"a.npz"):
        list(read_run(tmp_path / "a.npz"))


def test_a_damaged_archive_is_refused(tmp_path):
    metrics, scalars = course(200)
    save(tmp_path / "a.npz", metrics, scalars)
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(WireError, match=r"a.npz must be an .npz file"):
        list(read_run(tmp_path / "a.npz"))


def test_a_bomb_of_zeros_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_VALUES", 1_000)
    path = archive(tmp_path / "a.npz", sigma=array(np.zeros((1_000, 3), np.float32)))
    with pytest.raises(WireError, match="must hold at most 1000 values"):
        list(read_run(path))
