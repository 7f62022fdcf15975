"""When the steps of a source were written: its own times, whatever their form."""

import math
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from recorded_files import (
    EVENTS,
    WANDB,
    mlflow_database,
    mlflow_folder,
    wandb_end,
    wandb_rows,
    wandb_start,
    write_wandb,
)

from snc_service.importing.recording import SeriesKey
from snc_service.importing.sources import find
from snc_service.importing.times import RecordedTimes, as_text, unix_seconds
from snc_service.store.types import imported
from snc_service.wire import MAX_STEP

BEGIN = 1_700_000_000.0


def read(path, step_name=None):
    (source,) = find(path)
    (recording,) = source.read(step_name)
    recording.add_step_seconds()
    return recording


def step_seconds(recording, attempt=0):
    points = recording.series[SeriesKey(attempt, "step_seconds")]
    steps, values = points.ordered()
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def test_an_event_file_that_tensorboard_wrote_has_its_wall_times():
    recording = read(EVENTS)
    # Step s was written at 10^9 + s, the last one at 10^9: a clock that went back makes no time.
    assert step_seconds(recording) == {**dict.fromkeys(range(1, 30), 1.0), 30: 0.0, 31: 0.0}
    assert recording.times.span() == (1e9, 1e9 + 30)


def test_files_that_wandb_and_mlflow_wrote_have_times(tmp_path):
    for path, year in ((WANDB, 2026), (mlflow_database(tmp_path / "mlflow.db"), 2026)):
        begin, end = read(path).times.span()
        assert as_text(begin).startswith(f"{year}-")
        assert 0 < end - begin < 60


def test_rows_of_wandb_have_the_times_of_the_steps_that_they_are_placed_at(tmp_path):
    rows = [
        (call, {"loss": 1.0, "train/global_step": 100 * call, "_timestamp": BEGIN + 50 * call})
        for call in range(1, 5)
    ]
    recording = read(
        write_wandb(tmp_path / "run-a.wandb", [wandb_start(), *wandb_rows(rows), wandb_end()])
    )
    assert step_seconds(recording) == dict.fromkeys((100, 200, 300, 400), 0.5)
    assert recording.times.span() == (BEGIN + 50, BEGIN + 200)


def test_a_folder_store_of_mlflow_has_times_in_milliseconds(tmp_path):
    at = int(BEGIN * 1000)
    mlflow_folder(
        tmp_path / "mlruns", {"loss": f"{at} 0.5 1\n{at + 3000} 0.4 3\n{at + 4000} 0.3 4\n"}
    )
    assert step_seconds(read(tmp_path)) == {1: 1.5, 3: 1.0, 4: 1.0}


@pytest.mark.parametrize("unit", [1, 1e3, 1e6, 1e9])
def test_the_unit_of_a_column_of_times_is_told_by_its_size(tmp_path, unit):
    table = tmp_path / "t.csv"
    lines = [f"{step},{int((BEGIN + 2 * step) * unit)},0.5" for step in range(4)]
    table.write_text("\n".join(["step,timestamp,loss", *lines, ""]))
    recording = read(table)
    assert step_seconds(recording) == {step: pytest.approx(2.0) for step in range(4)}
    assert recording.times.span() == (pytest.approx(BEGIN), pytest.approx(BEGIN + 6))
    assert set(recording.series) == {SeriesKey(0, "loss"), SeriesKey(0, "step_seconds")}


@pytest.mark.parametrize(
    "form", ["2023-11-14T22:13:20Z", "2023-11-14 22:13:20+00:00", "2023-11-14T22:13:20"]
)
def test_a_time_as_text_is_read_and_one_without_a_zone_is_utc(form):
    assert unix_seconds(form) == BEGIN


def test_parquet_holds_times_as_datetimes_in_long_tables_too(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    begin = datetime.fromtimestamp(BEGIN, timezone.utc)
    columns = {
        "step": [1, 2, 1, 2],
        "metric": ["loss", "loss", "lr", "lr"],
        "value": [1.0, 0.5, 0.1, 0.1],
        "time": [begin, begin + timedelta(seconds=7)] * 2,
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert step_seconds(read(tmp_path / "t.parquet")) == {1: 7.0, 2: 7.0}


@pytest.mark.parametrize(
    "value", [0.25, -1.0, float("nan"), float("inf"), True, None, "", "soon", 1e30, "9" * 99, b"x"]
)
def test_what_is_no_time_is_left_out(value):
    assert unix_seconds(value) is None


@pytest.mark.parametrize("value", [-1, 10**400, -(10**400), 1e13, math.nan, True, "7", None])
def test_seconds_that_a_config_cannot_mean_are_passed_over(value):
    assert imported.seconds({"imported": {"seconds": value}}, 7.0) == 7.0


def test_seconds_per_step_that_a_source_reports_itself_are_kept(tmp_path):
    table = tmp_path / "t.csv"
    lines = [f"{step},{BEGIN + step},0.125" for step in range(3)]
    table.write_text("\n".join(["step,timestamp,step_seconds", *lines, ""]))
    assert step_seconds(read(table)) == dict.fromkeys(range(3), 0.125)


def test_times_of_many_series_take_the_memory_of_their_steps(monkeypatch):
    monkeypatch.setattr("snc_service.importing.times.TIDIED", 100)
    times = RecordedTimes()
    for series in range(50):
        for step in range(30):
            times.add(0, step, BEGIN + series + 2 * step)
    assert len(times._attempts[0].steps) <= 130
    ((steps, each),) = times.step_seconds().values()
    assert steps.tolist() == list(range(30))
    assert np.all(each == 2.0)


def test_steps_that_cannot_be_stored_have_no_times():
    times = RecordedTimes()
    for step in (-1, MAX_STEP + 1):
        times.add(0, step, BEGIN)
    assert times.span() is None
