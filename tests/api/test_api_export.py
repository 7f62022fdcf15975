"""Export: everything comes back bit for bit in both forms; what breaks off never looks whole."""

from __future__ import annotations

import csv
import io
import re
import threading
import zlib

import numpy as np
import pyarrow.parquet as pq
import pytest
from api_cases import RUN, assert_problem, batch_of, register, serving_app, settings_in, table_of
from store_cases import NOW, submit

from snc_service.api.history import export, export_csv, export_parquet
from snc_service.auth import make_token
from snc_service.settings import Settings
from snc_service.wire import ABSENT

WIDE = "\N{FULLWIDTH EQUALS SIGN}1"
HOSTILE = ("a", '=cmd|"/c calc"!A1', "-2+3", "@sum(1)", "+1", "'quoted", "x,y", WIDE)
LAYERS = table_of(*HOSTILE)
WORDS = np.array(
    [0x7FC00000, 0x7FC00001, 0x7F800001, 0xFFC0BEEF, 0x7F800000, 0xFF800000, 0x80000000, 1,
     0xBF8CCCCD, 0x3DCCCCCD, 0x7F7FFFFF, 0xC2C80000],
    np.uint32,
)  # fmt: skip


@pytest.fixture
def api(store_url):
    with serving_app(Settings(store=store_url)) as opened:
        register(opened, LAYERS)
        yield opened


def fed(api, num_steps: int = 50) -> dict[tuple, int]:
    """Send two attempts of random bit patterns; return what a whole export must hold."""
    rng, held = np.random.default_rng(0), {}
    for seq, (first, attempt) in enumerate(((0, 0), (num_steps, 0), (10, 1))):
        shape = (num_steps, len(HOSTILE))
        words = rng.integers(0, 2**32, shape, dtype=np.uint32)
        words[: len(WORDS), :] = WORDS[:, None]
        sigma, loss = words.view(np.float32), rng.standard_normal(num_steps).astype(np.float32)
        steps = tuple(range(first, first + num_steps))
        one = batch_of(
            LAYERS, seq, steps, sigma=sigma, threshold=-abs(sigma), scalars={"loss": loss}
        )
        (outcome,) = submit(api.service.store, [one], run="r")  # the wire knows but one NaN
        assert outcome.error is None
        for name, values in (("sigma", sigma), ("threshold", -abs(sigma))):
            for (row, column), word in np.ndenumerate(values.view(np.uint32)):
                if word != 0x7FC00001:
                    held[attempt, name, HOSTILE[column], steps[row]] = int(word)
        for step, word in zip(steps, loss.view(np.uint32).tolist(), strict=True):
            held[attempt, "loss", None, step] = word
        if seq == 0:
            api.service.store.fold(60, now=NOW + 10**9)
    return held


def from_parquet(body: bytes) -> dict[tuple, int]:
    table = pq.read_table(io.BytesIO(body))
    columns = {name: table[name].to_pylist() for name in ("run", "attempt", "metric", "layer")}
    assert set(columns.pop("run")) <= {"r"}
    words = table["value"].combine_chunks().to_numpy(zero_copy_only=False).view(np.uint32).tolist()
    keys = list(zip(*columns.values(), table["step"].to_pylist(), strict=True))
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, words, strict=True))


def from_csv(text: str) -> dict[tuple, int]:
    head, *rows = csv.reader(io.StringIO(text, newline=""))
    assert head == ["run", "attempt", "metric", "layer", "step", "value"]
    found = {}
    for run, attempt, metric, layer, step, value in rows:
        assert run == "r"
        key = (int(attempt), metric, read_back(layer) or None, int(step))
        assert key not in found
        found[key] = int(np.array([float(value)], np.float32).view(np.uint32)[0])
    return found


def test_parquet_brings_every_bit_back(api):
    held = fed(api)
    told = api.get(f"{RUN}/export", params={"format": "parquet"})
    assert told.status_code == 200
    assert told.headers["Content-Type"] == "application/vnd.apache.parquet"
    assert told.headers["Content-Disposition"] == 'attachment; filename="r.parquet"'
    assert from_parquet(told.content) == held


def test_parquet_uses_the_encodings_that_suit_it(api):
    fed(api)
    told = api.get(f"{RUN}/export", params={"format": "parquet"})
    group = pq.ParquetFile(io.BytesIO(told.content)).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    for name, encoding in export_parquet.ENCODINGS.items():
        assert encoding in columns[name].encodings, name
    assert "RLE_DICTIONARY" in columns["layer"].encodings


def test_csv_brings_every_number_back_and_any_nan_as_nan(api):
    held = fed(api)
    told = api.get(f"{RUN}/export", headers={"Accept-Encoding": "identity"})
    assert told.headers["Content-Type"].startswith("text/csv")

    def plain(word: int) -> int:
        return 0x7FC00000 if np.isnan(np.array([word], np.uint32).view(np.float32)[0]) else word

    got = from_csv(told.text)
    assert {key: plain(word) for key, word in got.items()} == {
        key: plain(word) for key, word in held.items()
    }


def test_no_text_cell_of_csv_is_a_formula_and_negative_numbers_stay_numbers(api):
    fed(api)
    told = api.get(f"{RUN}/export", params={"metric": "threshold"})
    rows = list(csv.reader(io.StringIO(told.text, newline="")))[1:]
    layers = {row[3] for row in rows}
    assert layers == {"a", "'=cmd|\"/c calc\"!A1", "'-2+3", "'@sum(1)", "'+1", "''quoted", "x,y",
                      "'" + WIDE}  # fmt: skip
    assert any(float(row[5]) < 0 and row[5].startswith("-") for row in rows)


def test_filters_take_a_part(api):
    held = fed(api)
    asked = {"format": "parquet", "metric": "sigma", "layer": ["a", "x,y"], "from_step": 5,
             "to_step": 60, "attempt": 0}  # fmt: skip
    told = api.get(f"{RUN}/export", params=asked)
    wanted = {
        key: word
        for key, word in held.items()
        if key[0] == 0 and key[1] == "sigma" and key[2] in ("a", "x,y") and 5 <= key[3] <= 60
    }
    assert from_parquet(told.content) == wanted
    told = api.get(f"{RUN}/export", params={"metric": "loss", "format": "parquet"})
    assert {key[1:3] for key in from_parquet(told.content)} == {("loss", None)}


def test_a_run_without_values_is_an_empty_table(api):
    told = api.get(f"{RUN}/export", params={"format": "parquet"})
    assert pq.read_table(io.BytesIO(told.content)).num_rows == 0
    assert api.get(f"{RUN}/export").text == "run,attempt,metric,layer,step,value\r\n"


def test_row_groups_are_as_large_as_they_may_be_and_no_larger(api, monkeypatch):
    held = fed(api)
    monkeypatch.setattr(export_parquet, "GROUP_ROWS", 500)
    told = api.get(f"{RUN}/export", params={"format": "parquet"})
    assert from_parquet(told.content) == held
    metadata = pq.ParquetFile(io.BytesIO(told.content)).metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert max(sizes) <= 500
    assert len(sizes) >= len(held) // 500


def test_csv_is_compressed_for_a_client_that_reads_that(api):
    held = fed(api)
    told = api.get(f"{RUN}/export", headers={"Accept-Encoding": "gzip"})
    assert told.headers["Content-Encoding"] == "gzip"
    assert len(from_csv(told.text)) == len(held)
    assert told.num_bytes_downloaded < len(told.content)


def test_what_cannot_be_exported_is_refused_before_a_byte_is_sent(api, monkeypatch):
    assert_problem(api.get("/api/v1/runs/nobody/export"), 404, "run-unknown")
    assert_problem(api.get(f"{RUN}/export", params={"layer": "zzz"}), 404, "layer-unknown")
    assert_problem(api.get(f"{RUN}/export", params={"format": "xml"}), 422, "invalid", "format")
    assert_problem(api.get(f"{RUN}/export", params={"sheet": "1"}), 422, "invalid", "sheet")
    monkeypatch.setattr(export_parquet, "can_write", lambda: False)
    told = api.get(f"{RUN}/export", params={"format": "parquet"})
    detail = assert_problem(told, 501, "format-unavailable")["detail"]
    assert "spectral-norm-constraint[parquet]" in detail
    assert api.get(f"{RUN}/export").status_code == 200


def test_more_exports_than_there_is_memory_for_are_told_to_come_back(api):
    api.service.exports = export.MOST_EXPORTS
    assert_problem(api.get(f"{RUN}/export"), 503, "overloaded")
    api.service.exports = 0
    assert api.get(f"{RUN}/export").status_code == 200
    assert api.service.exports == 0


def test_one_token_leaves_places_for_the_exports_of_others(api, monkeypatch):
    begun, go_on = threading.Semaphore(0), threading.Event()
    original = export_csv.csv_chunks

    def slow(run, pieces):
        begun.release()
        assert go_on.wait(30)
        yield from original(run, pieces)

    secrets = []
    for name in ("greedy", "other"):
        token, secret = make_token(
            name, ("read",), project=None, author="operator", now=0.0, expires_at=None
        )
        api.service.store.tokens.add(token)
        secrets.append({"Authorization": f"Bearer {secret}"})
    api.wait_for(api.service.tokens.refresh, now=True)
    greedy, other = secrets
    monkeypatch.setattr(export_csv, "csv_chunks", slow)
    # One piece is made at a time: the second export waits for the first, and counts.
    answers = [api.start("GET", f"{RUN}/export", headers=greedy) for _ in range(2)]
    assert begun.acquire(timeout=30)
    while api.service.exports < export.MOST_OF_ONE_TOKEN:
        api.get("/healthz")
    assert_problem(api.get(f"{RUN}/export", headers=greedy), 429, "rate-limited")
    answers.append(api.start("GET", f"{RUN}/export", headers=other))
    go_on.set()
    assert [answer.result(timeout=30).status_code for answer in answers] == [200, 200, 200]
    assert api.get(f"{RUN}/export", headers=greedy).status_code == 200


def test_a_run_that_is_deleted_meanwhile_breaks_the_answer_off(tmp_path, monkeypatch):
    started, go_on = threading.Event(), threading.Event()
    original = export_csv.csv_chunks

    def slow(run, pieces):
        for number, chunk in enumerate(original(run, pieces)):
            if number == 2:
                started.set()
                assert go_on.wait(30)
            yield chunk

    monkeypatch.setattr(export_csv, "csv_chunks", slow)
    with serving_app(settings_in(tmp_path)) as api:
        register(api, LAYERS)
        fed(api)
        answer = api.start("GET", f"{RUN}/export")
        assert started.wait(30)
        assert api.delete(RUN).status_code == 204
        go_on.set()
        with pytest.raises(RuntimeError, match="response already started"):
            answer.result(timeout=30)
        assert api.service.exports == 0


SEPARATORS = ",;|:\t\u2028\u2029"


def read_back(text):
    """Take off what keeps spreadsheets from running a name, as the documentation says."""
    return re.sub(f"(^|[{SEPARATORS}])'", r"\1", text)


NAMES = (*HOSTILE, "\t=1", "''", '"', "-", "w;=1;x", "w,;=1", "w; =1", "w|@x", "w:+1", "a;'b",
         "a'=b",
         "w\u2028=1", 'a";=1', " =1", "a;b,c", "::=x", "a;\uff1d1")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_can_be_read_back_by_taking_apostrophes_off(name):
    (read,) = next(csv.reader([export_csv.cell(name)]))
    assert read_back(read) == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("separator", SEPARATORS)
def test_no_cell_is_a_formula_whatever_separator_a_spreadsheet_assumes(name, separator):
    line = f"{export_csv.cell('r')},0,{export_csv.cell('sigma')},{export_csv.cell(name)},"
    cells = [cell for row in csv.reader([line], delimiter=separator) for cell in row]
    cells += [part.strip('"') for part in line.split(separator)]  # and whoever knows no quotes
    assert not [cell for cell in cells if cell.strip().startswith(("=", "+", "-", "@", "\uff1d"))]


def test_packing_and_cutting_change_no_byte():
    body = np.random.default_rng(0).bytes(10**6)
    chunks = list(export._cut(iter([body[:700_000], b"", body[700_000:]])))
    assert max(map(len, chunks)) <= export.CHUNK_BYTES
    packed = b"".join(export._packed(iter(chunks)))
    assert zlib.decompress(packed, wbits=31) == body


def test_absent_has_no_row_whatever_else_is_there(api):
    values = [[ABSENT] * len(HOSTILE), [1.0] + [ABSENT] * (len(HOSTILE) - 1)]
    assert api.send(batch_of(LAYERS, 0, (0, 1), sigma=values)).status_code == 200
    got = from_parquet(api.get(f"{RUN}/export", params={"format": "parquet"}).content)
    assert got == {(0, "sigma", "a", 1): 0x3F800000}


def test_both_forms_are_in_the_schema(api):
    operation = api.get("/openapi.json").json()["paths"]["/api/v1/runs/{run}/export"]["get"]
    described = set(operation["responses"]["200"]["content"])
    for form in ("csv", "parquet"):
        told = api.get(f"{RUN}/export", params={"format": form})
        assert told.headers["Content-Type"].partition(";")[0] in described
