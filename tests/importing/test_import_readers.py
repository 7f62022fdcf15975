"""Files of W&B, TensorBoard and MLflow are read as their tools wrote them."""

import math
import random

import numpy as np
import pytest
from recorded_files import (
    EVENTS,
    WANDB,
    crc32c,
    event,
    mlflow_database,
    mlflow_folder,
    part,
    wandb_end,
    wandb_rows,
    wandb_start,
    whole,
    write_events,
    write_wandb,
)

from snc_service.importing import crc32c as fast
from snc_service.importing.name_map import mapped
from snc_service.importing.recording import LeftOut, SeriesKey
from snc_service.importing.sources import find
from snc_service.wire import WireError


def only(path, step_name=None):
    (source,) = find(path)
    (recording,) = source.read(step_name)
    return recording


def values(recording, name, attempt=0, layer=None):
    steps, values = recording.series[SeriesKey(attempt, name, layer)].ordered()
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def check_rows(recording, last, digits=15):
    """The values of files/make.py."""
    loss = values(recording, "train/loss")
    assert math.isnan(loss.pop(20))
    assert loss == {s: pytest.approx(2 / s, rel=10**-digits) for s in range(1, last + 1) if s != 20}
    expected = {step: 1 + step / 8 for step in range(1, last + 1)}
    assert values(recording, "sigma/fc1.weight") == expected
    gradients = {step: step / 2 for step in range(1, last + 1)}
    assert values(recording, "l2_norm/grad/fc1.weight") == gradients


def test_a_log_that_wandb_wrote_is_read_over_its_blocks():
    assert WANDB.stat().st_size > 32_768
    recording = only(WANDB)
    check_rows(recording, 60)
    assert (recording.id, recording.name, recording.project) == ("demo-abcd1234", "first", "demo")
    assert recording.config == {"lr": 0.001, "model": {"width": 64}}
    assert (recording.tags, recording.end) == (["base"], "finished")
    (remark,) = recording.remarks()
    assert remark.startswith("left out 4 values that are no numbers: ")
    assert remark.endswith(", text")  # all four are named, so nothing says that there are more


def test_four_names_of_what_was_left_out_are_told_and_that_there_are_more():
    left = LeftOut()
    for name in "abcd":
        left.add(name)
    assert left.told("cells") == "left out 4 cells: a, b, c, d"
    left.add("e")
    left.add("e")
    assert left.told("cells") == "left out 6 cells: a, b, c, d, ..."


def test_an_event_file_that_tensorboard_wrote_is_read():
    recording = only(EVENTS)
    check_rows(recording, 30, digits=6)  # TensorBoard keeps float32
    assert values(recording, "v2/loss") == {31: 0.25}  # a tensor without dimensions
    assert recording.remarks() == [
        "left out 1 values that are no scalars (histograms, images, texts): h"
    ]


def test_a_database_that_mlflow_wrote_is_read(tmp_path):
    recording = only(mlflow_database(tmp_path / "mlflow.db"))
    infinite = recording.series[SeriesKey(0, "train/loss")]
    assert infinite.values.pop() == math.inf  # the largest double stands for it in the file
    infinite.steps.pop()
    check_rows(recording, 30)
    assert (recording.name, recording.project, recording.tags) == ("first", "demo", ["team=a"])
    assert recording.config == {"lr": "0.001"}


def test_a_folder_store_of_mlflow_is_read_with_slashes_in_names(tmp_path):
    mlflow_folder(
        tmp_path / "mlruns",
        {"train/loss": "1796055135089 0.5 1\n1796055135090 nan 2\n1 inf 3\ncut", "old": "7 2.5\n"},
    )
    recording = only(tmp_path)
    loss = values(recording, "train/loss")
    assert (loss[1], loss[3]) == (0.5, math.inf)
    assert math.isnan(loss[2])
    assert values(recording, "old") == {0: 2.5}  # early releases wrote no step
    assert (recording.end, recording.project, recording.config) == (
        "failed",
        "demo",
        {"lr": "0.001"},
    )
    assert recording.remarks() == [
        "left out 1 lines that are not: milliseconds, value, step: train/loss"
    ]


def test_links_in_a_folder_are_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("not for everybody")
    place = mlflow_folder(tmp_path / "mlruns", {"loss": "1 0.5 1\n"})
    (place / "params" / "stolen").symlink_to(secret)
    (place / "metrics" / "stolen").symlink_to(secret)
    (tmp_path / "mlruns" / "linked").symlink_to(tmp_path)
    recording = only(tmp_path / "mlruns")
    assert recording.config == {"lr": "0.001"}
    assert [key.name for key in recording.series] == ["loss"]


def test_the_logs_of_a_resumed_run_are_one_run_in_the_order_of_their_time(tmp_path):
    rows = [(step, {"loss": step + 0.5}) for step in range(4)]
    later = [(step, {"loss": step + 0.25}) for step in range(3, 6)]
    for folder, records in (
        ("run-20260102_000000-abc", [wandb_start(), *wandb_rows(later), wandb_end(1)]),
        ("offline-run-20260101_000000-abc", [wandb_start(), *wandb_rows(rows)]),
    ):
        write_wandb(tmp_path / "wandb" / folder / "run-abc.wandb", records)
    recording = only(tmp_path)
    assert values(recording, "loss") == {0: 0.5, 1: 1.5, 2: 2.5, 3: 3.25, 4: 4.25, 5: 5.25}
    assert recording.end == "failed"


def test_steps_of_the_training_come_before_calls_of_log(tmp_path):
    rows = [(call, {"loss": 1.0, "trainer/global_step": call * 50}) for call in range(3)]
    path = write_wandb(tmp_path / "run-abc.wandb", [wandb_start(), *wandb_rows(rows), wandb_end()])
    recording = only(path)
    assert list(values(recording, "loss")) == [0, 50, 100]
    assert recording.notes == ["steps are the values of trainer/global_step"]
    assert list(values(only(path, "_step"), "loss")) == [0, 1, 2]


def test_rows_without_a_step_are_left_out_and_said(tmp_path):
    rows = wandb_rows([(1, {"loss": 1.0}), (2, {"loss": 2.0})])
    stepless = part(2, part(1, part(2, "loss") + part(16, "7.0")))
    path = write_wandb(tmp_path / "run-a.wandb", [rows[0], stepless, rows[1], wandb_end()])
    recording = only(path)
    assert values(recording, "loss") == {1: 1.0, 2: 2.0}
    assert recording.remarks() == ["left out 1 rows without a whole number _step"]
    nowhere = only(write_wandb(tmp_path / "run-b.wandb", [stepless, wandb_end()]))
    assert nowhere.series == {}


def test_numbers_that_newer_logs_hold_as_such_are_read(tmp_path):
    def item(name, typed):
        return part(1, part(1, name) + typed)

    integer = item("count", whole(5, 13))  # zigzag: -7
    number = item("loss", bytes([6 << 3 | 1]) + np.float64(0.5).tobytes())
    path = write_wandb(
        tmp_path / "run-a.wandb",
        [part(2, integer + number + part(2, whole(1, 3))), wandb_end()],
    )
    recording = only(path)
    assert (values(recording, "count"), values(recording, "loss")) == ({3: -7.0}, {3: 0.5})


def test_a_record_above_a_block_is_joined(tmp_path):
    rows = wandb_rows([(1, {"text": "x" * 100_000, "loss": 2.0}), (2, {"loss": 1.0})])
    recording = only(write_wandb(tmp_path / "run-a.wandb", [wandb_start(), *rows, wandb_end()]))
    assert values(recording, "loss") == {1: 2.0, 2: 1.0}


def test_event_files_of_one_folder_are_one_run_and_the_later_file_counts(tmp_path):
    for time, steps, value in ((1, range(4), 1.0), (2, range(2, 6), 2.0)):
        events = [event(step, loss=value) for step in steps]
        write_events(tmp_path / f"events.out.tfevents.{time}.host", events)
    recording = only(tmp_path)
    assert values(recording, "loss") == {0: 1, 1: 1, 2: 2, 3: 2, 4: 2, 5: 2}


def test_each_folder_with_event_files_is_a_run_and_equal_names_stay_apart(tmp_path):
    for place, time in (("a/version_0", 1), ("b/version_0", 2)):
        write_events(tmp_path / place / f"events.out.tfevents.{time}.h", [event(1, loss=1.0)])
    found = [recording for source in find(tmp_path) for recording in source.read()]
    assert [each.source for each in found] == ["a/version_0", "b/version_0"]
    assert len({each.id for each in found}) == 2


@pytest.mark.parametrize("cut", [3, 20, 500])
def test_a_cut_log_is_read_to_its_end_which_is_said(tmp_path, cut):
    path = tmp_path / "run-a.wandb"
    path.write_bytes(WANDB.read_bytes()[:-cut])
    recording = only(path)
    assert len(values(recording, "sigma/fc2.weight")) >= 58
    assert "ends within a record" in recording.notes[0]
    path = tmp_path / EVENTS.name
    path.write_bytes(EVENTS.read_bytes()[:-cut])
    recording = only(path)
    assert len(values(recording, "sigma/fc2.weight")) >= 28
    assert "ends within a record" in recording.notes[0]


def test_a_flipped_bit_costs_its_record_and_is_said(tmp_path):
    data = bytearray(EVENTS.read_bytes())
    at = data.index(b"sigma/fc1.weight", 4_000)
    data[at] ^= 1
    path = tmp_path / EVENTS.name
    path.write_bytes(data)
    recording = only(path)
    assert len(values(recording, "sigma/fc1.weight")) == 29
    assert "has a damaged record at byte" in recording.notes[0]
    rows = [(step, {"loss": step, "pad": "x" * 1_000}) for step in range(60)]
    path = write_wandb(tmp_path / "run-a.wandb", [wandb_start(), *wandb_rows(rows), wandb_end()])
    data = bytearray(path.read_bytes())
    data[4_000] ^= 1
    path.write_bytes(data)
    recording = only(path)
    assert len(values(recording, "loss")) == 59
    assert "has a damaged record at byte" in recording.notes[0]
    data[4_000:6_000] = bytes(2_000)  # lengths are lost, too
    path.write_bytes(data)
    recording = only(path)
    there = list(values(recording, "loss"))
    assert there[-1] == 59
    assert there[:3] == [0, 1, 2]
    assert 28 < len(there) < 40  # those of the second block, and the first ones
    assert "damage to the end of the block at byte" in recording.notes[1]


def test_a_crc_is_the_one_of_its_definition_for_every_length():
    assert fast.of_many([b"123456789"]) == [0xE3069283]
    dice = random.Random(1)
    records = [dice.randbytes(size) for size in (0, 1, 3, 4, 5, 63, 64, 4_095, 4_096, 4_097, 9_000)]
    dice.shuffle(records)
    assert fast.of_many(records) == [crc32c(record) for record in records]
    assert [fast.of_one(record) for record in records[:3]] == fast.of_many(records[:3])


def test_a_file_of_another_kind_says_what_can_be_imported(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WireError, match=r"must be or hold W&B logs .* got none of them"):
        find(tmp_path)
    base = tmp_path / "other.db"
    base.write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(WireError, match="must be an MLflow database"):
        list(find(base)[0].read())


def test_a_database_whose_table_is_a_view_is_refused(tmp_path):
    import sqlite3
    from contextlib import closing

    path = mlflow_database(tmp_path / "mlflow.db")
    with closing(sqlite3.connect(path)) as base:
        base.executescript(
            "drop table metrics; create view metrics as with recursive n(x) as "
            "(select 1 union all select x + 1 from n) select x as key, x as step, 1 as value, "
            "0 as is_nan, '' as run_uuid, 0 as timestamp from n;"
        )
    with pytest.raises(WireError, match="got no table metrics"):
        list(find(path)[0].read())


def test_names_are_mapped_alike_from_all_tools(tmp_path):
    for recording in (only(WANDB), only(EVENTS), only(mlflow_database(tmp_path / "mlflow.db"))):
        names = mapped(recording)
        assert set(names.layers) == {"fc1.weight", "fc2.weight"}
        assert set(names.names(of_layers=True)) == {"sigma", "grad_norm"}
        assert {"loss", "lr"} <= set(names.names(of_layers=False))
        assert names.renamed["lr"] == "train/learning_rate"
