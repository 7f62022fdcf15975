"""What is stored is verified: a changed bit is an error that says where, and never a value."""

from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pytest
from store_cases import NOW, as_sent, batch, bits, new_run, quiet, stored, submit, table

from snc_service.cli.main import main
from snc_service.store import open_store, tiles
from snc_service.store.sql.compaction import due_chunks
from snc_service.store.sql.series import checksums
from snc_service.store.sql.series.checksums import BatchPlace, TileKey
from snc_service.store.types import EventQuery, Extent, StoreDamaged, Window

LAYERS = table(*(f"l{i}" for i in range(40)))
STEPS = 64
EVERYTHING = Window(points=10**6)
COARSE = Window(points=20)
# As wide as a batch of the tail has blocks: 64 steps of 4 layers each.
OF_A_BLOCK = checksums.BLOCK_BYTES // (4 * STEPS)


def values(seq: int) -> np.ndarray:
    return np.random.default_rng(seq).random((STEPS, 40), np.float32)


def one(seq: int):
    loss = np.random.default_rng(seq).random(STEPS)
    return batch(LAYERS, seq, range(seq * STEPS, seq * STEPS + STEPS), {"sigma": values(seq)},
                 {"loss": loss})  # fmt: skip


@pytest.fixture
def store(store_url, monkeypatch):
    """Return a store of 20 batches: 16 folded into one chunk, the rest in the tail."""
    with closing(open_store(store_url)) as store:
        new_run(store)
        store.batches.put_layer_table("r1", LAYERS)
        stored(store, *(one(seq) for seq in range(19)))
        while store.fold(1, now=NOW):
            pass
        stored(store, one(19))
        yield store


def flip(store, table, where, column="v", at=100):
    """Flip one bit of a blob in the first row that the condition finds."""
    keys = {"tail": "id", "tile": "metric, level, block, step0"}[table]
    with store._database.write() as connection:
        *key, blob = connection.execute(
            f"select {keys}, {column} from {table} where run_id = 1 and {where} order by {keys}"
        ).fetchone()
        changed = bytearray(blob)
        changed[at % len(changed)] ^= 4
        same = " and ".join(f"{name} = ?" for name in keys.split(", "))
        connection.execute(
            f"update {table} set {column} = ? where run_id = 1 and {same}", (bytes(changed), *key)
        )


def events_of(store):
    page = store.events.page(EventQuery(run="r1", rule="damaged"))
    return [stored_event.event for stored_event in page.items]


def history(store, layer, window=EVERYTHING, metric="sigma"):
    return store.histories.of_layers("r1", metric, [layer], window)


def test_what_was_not_changed_is_sound(store):
    found = store.damages.verify()
    assert (found.damaged, found.engine, found.unchecked) == ((), (), 0)
    # 3 blocks of layers and one scalar, each with a tile and a rollup; the rest of the tail.
    assert found.tiles == 2 * 4
    assert found.batches == 4


def test_a_changed_tile_is_an_error_that_says_where_and_the_rest_is_read(store):
    flip(store, "tile", "level = 0 and block = 1")
    for _ in range(2):
        with pytest.raises(StoreDamaged, match=r"'l16' to 'l31' at steps 0 to 1023 .*verify") as it:
            history(store, "l20")
    error = it.value
    assert (error.run, error.metrics, error.layers, error.steps) == (
        "r1", ("sigma",), ("l16", "l31"), (0, 1023)
    )  # fmt: skip
    for layer in (0, 15, 32, 39):
        whole = np.concatenate([values(seq)[:, layer] for seq in range(20)])
        np.testing.assert_array_equal(history(store, f"l{layer}").max[0], whole)
    assert len(history(store, "l20", Window(1024, None, 10**6)).steps) == 256
    assert len(history(store, "l20", COARSE).steps) == 20  # from the rollup, which is sound
    with pytest.raises(StoreDamaged):
        list(store.histories.scan("r1", Extent()))
    with pytest.raises(StoreDamaged):
        store.histories.worst("r1", "sigma", EVERYTHING, 40)
    (event,) = events_of(store)
    assert (event.severity, event.layer, event.layers, event.step) == ("critical", "l16", 16, 0)
    assert event.message == str(error)
    assert store.damages.count() == 1


def test_a_changed_rollup_is_an_error_of_coarse_answers_and_made_anew_by_a_repair(store):
    before = history(store, "l20", COARSE)
    flip(store, "tile", "level = 1 and block = 1")
    with pytest.raises(StoreDamaged, match="min, max and mean of sigma"):
        history(store, "l20", COARSE)
    assert len(history(store, "l20").steps) == 1280
    (finding,) = store.damages.repair(now=NOW)
    assert finding.done == "made anew from 1 tiles"
    after = history(store, "l20", COARSE)
    for name in ("steps", "mean", "min", "max"):
        assert getattr(after, name).tobytes() == getattr(before, name).tobytes()
    assert store.damages.count() == 0


def test_a_changed_block_of_a_recent_batch_hides_its_layers_alone(store):
    flip(store, "tail", "id = 19", at=5 * checksums.BLOCK_BYTES + 7)
    first, last = 5 * OF_A_BLOCK, 6 * OF_A_BLOCK - 1
    with pytest.raises(StoreDamaged, match=rf"'l{first}' to 'l{last}' at steps 1152 to 1215"):
        history(store, f"l{first}")
    for layer in (first - 1, last + 1):
        assert len(history(store, f"l{layer}").steps) == 1280
    assert len(store.histories.of_scalar("r1", "loss", EVERYTHING).steps) == 1280
    (finding,) = store.damages.repair(now=NOW)
    assert "the rest of the batch stays" in finding.done
    steps, kept = as_sent(store, "r1", "sigma", LAYERS.names)
    whole = bits(np.concatenate([values(seq) for seq in range(20)]).T)
    inside = (steps >= 1152) & (steps < 1216)
    np.testing.assert_array_equal(kept[:, ~inside], whole[:, ~inside])
    np.testing.assert_array_equal(kept[:first, inside], whole[:first, inside])
    np.testing.assert_array_equal(kept[last + 1 :, inside], whole[last + 1 :, inside])
    assert len(history(store, f"l{first}").steps) == 1216
    assert store.damages.verify().damaged == ()


def test_folding_leaves_a_damaged_chunk_and_goes_on_with_all_others(store):
    new_run(store, "r2")
    store.batches.put_layer_table("r2", LAYERS)
    stored(store, *(one(seq) for seq in range(3)), run="r2")
    flip(store, "tail", "id = 19")
    for _ in range(3):
        while store.fold(1, now=NOW + 3_600):
            pass
    with pytest.raises(StoreDamaged):
        history(store, "l0")
    assert len(events_of(store)) == 1
    with store._database.read() as connection:
        waiting = connection.execute("select run_id from tail group by run_id").fetchall()
        assert waiting == [(1,)]
    list(store.damages.repair(now=NOW))
    with closing(open_store_again(store)) as again:
        while again.fold(1, now=NOW + 3_600):
            pass
        assert again.damages.verify().batches == 0
        assert len(history(again, "l39").steps) == 1280


def test_damaged_chunks_do_not_keep_other_runs_from_their_turn(store, monkeypatch):
    """They fill a look as long as they wait for their next try."""
    monkeypatch.setattr(due_chunks, "ENOUGH", 1)
    new_run(store, "r2")
    store.batches.put_layer_table("r2", LAYERS)
    flip(store, "tail", "id = 19")
    for seq in range(3):  # the second look begins behind the run that was folded last
        stored(store, one(seq), run="r2")
        for _ in range(2):
            store.fold(0, now=NOW + 3_600)
        with store._database.read() as connection:
            waiting = connection.execute("select run_id from tail group by run_id").fetchall()
        assert waiting == [(1,)]


def open_store_again(store):
    database = store._database
    return open_store(f"sqlite:///{database.path}" if hasattr(database, "path") else database._url)


def test_late_values_do_not_give_a_damaged_tile_a_new_checksum(store):
    flip(store, "tile", "level = 0 and block = 1")
    late = batch(LAYERS, 0, [5], {"sigma": [[9.0] * 40]}, writer="late")
    assert [outcome.error for outcome in submit(store, [late])] == [None]
    while store.fold(1, now=NOW + 3_600):
        pass
    with pytest.raises(StoreDamaged):
        history(store, "l20")
    assert next(iter(store.damages.verify().damaged)).place.startswith("tile ")


@pytest.mark.parametrize("column", ["step1", "n", "enc", "layout", "step0", "attempt"])
def test_what_a_row_says_of_its_values_is_verified_with_them(store, column):
    table = "tile" if column == "enc" else "tail"
    with store._database.write() as connection:
        where = "level = 0 and block = 0" if table == "tile" else "id = 19"
        connection.execute(
            f"update {table} set {column} = {column} + 1 where run_id = 1 and {where}"
        )
    found = store.damages.verify().damaged
    assert len(found) == (4 - 2 if table == "tile" else 1)  # of sigma, and of the scalar


def test_every_bit_of_a_row_counts():
    key, steps, data = TileKey(1, 0, 2, 0, 3), b"\x00\x01" * 8, bytes(range(64))
    crc = checksums.of_tile(key, 0, 7, 8, 1, steps, data)
    for number in range(8 * (len(steps) + len(data))):
        changed = bytearray(steps + data)
        changed[number // 8] ^= 1 << number % 8
        other = bytes(changed[: len(steps)]), bytes(changed[len(steps) :])
        assert checksums.of_tile(key, 0, 7, 8, 1, *other) != crc
    place = BatchPlace(1, 2, 0, 0, 0, 7, 8)
    body = np.random.default_rng(0).bytes(3 * checksums.BLOCK_BYTES - 5)
    crcs = checksums.of_batch(place, steps, body)
    assert checksums.broken_blocks(place, steps, 0, body, crcs, 3) == []
    assert checksums.broken_blocks(place, steps, 1, body[1_024:2_048], crcs, 1) == []
    assert checksums.broken_blocks(place, steps, 1, body[:1_024], crcs, 1) == [1]
    assert checksums.broken_blocks(place._replace(id=3), steps, 0, body, crcs, 3) == [0, 1, 2]
    assert checksums.broken_blocks(place, steps, 0, body[:-1], crcs, 3) == [2]
    for number in range(0, 8 * len(body), 37):
        changed = bytearray(body)
        changed[number // 8] ^= 1 << number % 8
        found = checksums.broken_blocks(place, steps, 0, bytes(changed), crcs, 3)
        assert found == [number // 8 // checksums.BLOCK_BYTES]


def test_rows_of_an_earlier_release_are_read_and_get_a_checksum_when_they_are_folded(store):
    with store._database.write() as connection:
        connection.execute("update tail set crcs = null where run_id = 1")
        connection.execute("update tile set crc = null where run_id = 1")
    whole = bits(np.concatenate([values(seq) for seq in range(20)]).T)
    np.testing.assert_array_equal(as_sent(store, "r1", "sigma", LAYERS.names)[1], whole)
    assert store.damages.verify().unchecked == 8 + 4
    stored(store, batch(LAYERS, 0, [5], {"sigma": [[9.0] * 40]}, writer="late"))
    while store.fold(1, now=NOW + 3_600):
        pass
    whole[:, 5] = bits(np.float32([9.0]))
    np.testing.assert_array_equal(as_sent(store, "r1", "sigma", LAYERS.names)[1], whole)
    found = store.damages.verify()
    assert found.damaged == ()
    assert found.unchecked == 2  # of the scalar, to which nothing was added


def test_a_row_without_a_checksum_that_cannot_be_decoded_is_damage_too(store):
    with store._database.write() as connection:
        connection.execute("update tile set crc = null, v = ? where run_id = 1", (b"\x07" * 9,))
    for window in (EVERYTHING, COARSE):
        with pytest.raises(StoreDamaged):
            history(store, "l20", window)


def test_a_tile_of_a_form_of_the_future_is_not_called_damaged(store):
    with store._database.write() as connection:
        connection.execute("update tile set crc = null, enc = 99 where run_id = 1 and level = 0")
    with pytest.raises(tiles.FormUnknown, match="newer release"):
        history(store, "l20")


def test_the_command_line_verifies_and_repairs(store, store_url, capsys):
    def told(*words):
        status = main(["db", *words, "--store", store_url])
        return status, capsys.readouterr().out

    assert told("verify") == (
        0, "8 tiles and 4 recent batches were read: everything is as it was stored.\n"
    )  # fmt: skip
    flip(store, "tile", "level = 0 and block = 1")
    flip(store, "tail", "id = 19")
    status, said = told("verify")
    assert status == 1
    assert "'l16' to 'l31' at steps 0 to 1023 of run 'r1'" in said
    assert said.endswith("2 places are damaged.\n")
    status, said = told("verify", "--json")
    assert status == 1
    assert [each["layers"] for each in json.loads(said)["damaged"]] == [
        ["l16", "l31"],
        ["l0", "l3"],
    ]
    assert len(events_of(store)) == 2
    status, said = told("repair")
    assert status == 0
    assert "dropped; min, max and mean of every 32 measured steps stay" in said
    assert said.endswith("2 places were repaired; 0 are damaged.\n")
    assert store.damages.count() == 0
    assert told("repair", "--json")[0] == 0
    assert len(history(store, "l0").steps) == 1280 - STEPS
    assert [entry.action for entry in store.audit.page(author="repair")[0]] == ["run_repaired"] * 2


def test_a_deleted_run_takes_its_damage_along(store):
    flip(store, "tile", "level = 0 and block = 1")
    store.damages.verify()
    assert store.damages.count() == 1
    store.runs.delete("r1")
    assert store.damages.count() == 0


def test_detection_does_not_stop_for_damage_of_history(store):
    flip(store, "tail", "id = 19")
    assert len(stored(store, one(20), advance=quiet)) == 1
    assert store.histories.latest("r1").steps.tolist() == [21 * STEPS - 1] * 40
