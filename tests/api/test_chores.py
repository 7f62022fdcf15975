"""What a leaping clock may decide, and what it may not."""

import os
import platform
import signal
import time
from pathlib import Path

import httpx
import pytest
from api_cases import RUN, Clock, batch_of, register, serving_app, settings_in, table_of
from service_process import create, post, services, until

from snc_service import background_tasks
from snc_service.background_tasks import Leaps, Stops, steady_seconds
from snc_service.store.types import StoreFull

TABLE = table_of("a")
DAY = 86_400.0


def resident_bytes():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_leap_is_what_the_clock_moves_beyond_the_seconds_that_pass():
    clock, steady = Clock(), Clock()
    leaps = Leaps(clock, steady)
    for _ in range(100):  # a day, adjusted by a second in all
        clock.now += DAY / 100 + 0.01
        steady.now += DAY / 100
        assert leaps.look() == clock.now
    assert (leaps.total, leaps.quiet_seconds) == (0.0, pytest.approx(DAY))
    clock.now += DAY
    leaps.look()
    assert leaps.total == pytest.approx(DAY)
    assert leaps.quiet_seconds == 0
    steady.now += 7
    clock.now += 7 - DAY
    leaps.look()
    assert leaps.total == pytest.approx(0)
    assert leaps.quiet_seconds == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_memory_that_was_freed_goes_back_to_the_system():
    many = [bytes(1_500) for _ in range(60_000)]
    many[:] = many[-1:]  # the last lies behind 90 MB of holes
    before = resident_bytes()
    background_tasks.give_memory_back()
    assert resident_bytes() < before - 60 * 2**20


def test_steady_seconds_pass_as_seconds_do():
    before, at = steady_seconds(), time.monotonic()
    time.sleep(0.05)
    passed = steady_seconds() - before
    assert 0.05 <= passed <= time.monotonic() - at + 0.01


def test_time_in_which_the_process_did_not_run_counts_for_no_silence():
    steady = Clock()
    stops = Stops(15.0, steady)

    def passed(seconds):
        steady.now += seconds
        return stops.heard_since(300.0)

    assert [passed(15.1) for _ in range(30)] == [300.0] * 30
    assert passed(1_015) == 1_300  # stopped for a thousand seconds
    assert [passed(15) for _ in range(19)] == [1_300] * 19
    assert passed(65) == 350  # the first one lies too far back by now; this was one of 50
    assert [passed(15) for _ in range(40)][-1] == 300
    assert not stops._stops


def test_after_a_stop_nobody_is_called_silent_who_could_not_be_heard(tmp_path):
    store = f"sqlite:///{tmp_path}/snc.db"
    with (
        services(store, tmp_path, 1, SNC_SILENT_SECONDS="2") as (one,),
        httpx.Client(base_url=one.url, timeout=60) as http,
    ):
        create(one.url, TABLE, "r")
        post(http, one.url, batch_of(TABLE, sigma=[[1]]), "r")
        one.process.send_signal(signal.SIGSTOP)
        time.sleep(3)  # longer than a run may be quiet
        begun = time.monotonic()
        one.process.send_signal(signal.SIGCONT)
        seen = []
        while not seen or seen[-1] == "active":
            seen.append(http.get(RUN).json()["state"])
        assert seen[-1] == "silent"  # as ever, once it had the time to report
        assert time.monotonic() - begun > 1.5
        assert len(seen) > 1


@pytest.mark.parametrize("leap", [DAY, -DAY])
def test_a_run_that_reports_is_not_silent_because_the_clock_leapt(tmp_path, leap):
    clock, steady = Clock(), Clock()
    with serving_app(settings_in(tmp_path, silent_seconds=1), clock=clock, steady=steady) as api:
        register(api, TABLE)
        api.send(batch_of(TABLE, sigma=[[1]]))
        clock.now += leap
        time.sleep(0.3)  # three sweeps
        clock.now, steady.now = clock.now + 0.7, steady.now + 0.7
        api.send(batch_of(TABLE, 1, (1,), sigma=[[1]]))
        time.sleep(0.3)
        clock.now, steady.now = clock.now + 0.7, steady.now + 0.7
        time.sleep(0.3)
        assert api.get(RUN).json()["state"] == "active"
        # Later it does stop, and is found out as ever.
        clock.now, steady.now = clock.now + 1.5, steady.now + 1.5
        until(lambda: api.get(RUN).json()["state"] == "silent")


def test_a_run_that_stopped_before_the_clock_went_back_is_silent_all_the_same(tmp_path):
    clock, steady = Clock(), Clock()
    with serving_app(settings_in(tmp_path, silent_seconds=1), clock=clock, steady=steady) as api:
        register(api, TABLE)
        api.send(batch_of(TABLE, sigma=[[1]]))
        clock.now -= DAY
        time.sleep(0.3)
        assert api.get(RUN).json()["state"] == "active"
        clock.now, steady.now = clock.now + 1.1, steady.now + 1.1
        until(lambda: api.get(RUN).json()["state"] == "silent")
        event = api.get(f"{RUN}/events").json()["items"][0]
        assert event["rule"] == "run_silent"
        assert event["value"] == 1


def test_a_service_that_was_down_gives_runs_the_time_to_report_again(tmp_path):
    clock = Clock()
    settings = settings_in(tmp_path, silent_seconds=1)
    with serving_app(settings, clock=clock) as api:
        register(api, TABLE)
        api.send(batch_of(TABLE, sigma=[[1]]))
    clock.now += 3_600
    with serving_app(settings, clock=clock) as api:
        time.sleep(0.3)
        assert api.get(RUN).json()["state"] == "active"
        clock.now += 1.1
        until(lambda: api.get(RUN).json()["state"] == "silent")


def test_a_trouble_that_lasts_is_said_once_and_again_after_it_was_over(tmp_path, caplog):
    tries, broken = [], [True]

    def mark_silent(before, now):
        tries.append(now)
        if broken:
            raise StoreFull("the disk is full")

    with serving_app(settings_in(tmp_path, silent_seconds=1), clock=time.time) as api:
        api.service.store.runs.mark_silent = mark_silent
        until(lambda: len(tries) >= 3)
        assert caplog.text.count("silent runs could not be looked for: the disk is full") == 1
        broken.clear()
        seen = len(tries)
        until(lambda: len(tries) >= seen + 2)
        broken.append(True)
        until(lambda: caplog.text.count("silent runs could not be looked for") == 2)


def test_a_clock_that_leaps_ahead_makes_no_run_too_old_to_keep(tmp_path, monkeypatch):
    monkeypatch.setattr(background_tasks, "KEEP_PAUSE_SECONDS", 0.05)
    clock, steady = Clock(), Clock()
    with serving_app(settings_in(tmp_path, keep_days=2), clock=clock, steady=steady) as api:
        register(api, TABLE)
        api.send(batch_of(TABLE, sigma=[[1]]))
        api.post(f"{RUN}/finish", json={"state": "finished"})
        clock.now += 30 * DAY
        time.sleep(0.3)  # several looks
        assert api.get(RUN).status_code == 200
        clock.now, steady.now = clock.now + 2.1 * DAY, steady.now + 2.1 * DAY
        until(lambda: api.get(RUN).status_code == 404)


def test_the_service_verifies_by_itself_what_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(background_tasks, "VERIFY_PAUSE_SECONDS", 0.05)
    with serving_app(settings_in(tmp_path), clock=time.time) as api:
        register(api, TABLE)
        api.send(batch_of(TABLE, sigma=[[1]]))
        assert "snc_store_damaged 0" in api.get("/metrics").text
        with api.service.store._database.write() as connection:
            connection.execute("update tail set v = ? where run_id = 1", (b"\x00" * 4,))
        until(lambda: "snc_store_damaged 1" in api.get("/metrics").text)
        (event,) = api.get(f"{RUN}/events", params={"rule": "damaged"}).json()["items"]
        assert event["severity"] == "critical"
        assert "snc db verify" in event["message"]
        until(lambda: api.get("/api/v1/incidents").json()["items"])
