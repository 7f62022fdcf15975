"""The exposition: planted values on /metrics, bounded, escaped, and never hiding what is broken."""

import threading
import zlib
from collections import Counter

import numpy as np
import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from test_exposition_text import HOSTILE

from snc_service.detect.rules import RunRules
from snc_service.exposition import CONTENT_TYPE, FAMILIES, Exposition
from snc_service.exposition.exposition import fair_shares
from snc_service.exposition.families import LAYER_FAMILIES
from snc_service.exposition.process import ProcessMetrics
from snc_service.store import open_store
from snc_service.store.types import RunUnknown, StoreUnavailable, Submission
from snc_service.wire import ABSENT, Batch, LayerSpec, LayerTable, encode

START = 1_763_800_000.0


class Clock:
    """The time of the store and the exposition, in the test's hands."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path):
    opened = open_store(f"sqlite:///{tmp_path / 'snc.db'}")
    opened.batches.judge_with(RunRules)
    yield opened
    opened.close()


def reporter(store, clock):
    """Return a function that reports one row of a run, as its client would."""
    seqs: Counter[tuple[str, str]] = Counter()

    def report(
        run, layers, *, step=None, scalars=None, dropped=0, name="", writer="w", **metrics
    ) -> None:
        seq = seqs[run, writer]
        if not any(known == run for known, _ in seqs):
            store.runs.create(
                run, name=name or run, project="p", config={}, tags=(), policy=None, now=clock()
            )
        table = LayerTable(tuple(LayerSpec(layer) for layer in layers))
        store.batches.put_layer_table(run, table)
        scalars = scalars or {}
        batch = Batch(
            writer=writer,
            seq=seq,
            layers=table.hash,
            steps=(seq if step is None else step,),
            metrics=tuple(metrics),
            values=np.array([[row] for row in metrics.values()], np.float32),
            scalars=tuple(scalars),
            scalar_values=np.array([[value] for value in scalars.values()], np.float32),
            dropped=dropped,
        )
        submission = Submission(run, batch, zlib.crc32(encode(batch)), clock())
        (outcome,) = store.batches.ingest([submission])
        assert outcome.error is None
        seqs[run, writer] += 1

    return report


@pytest.fixture
def report(store, clock):
    return reporter(store, clock)


@pytest.fixture
def exposition(store, clock) -> Exposition:
    return Exposition(store, clock=clock)


def samples(answer: tuple[bytes, str]) -> dict[tuple[str, ...], float]:
    """Return {(name, label values...): value} as the official parser reads it; checks the form."""
    body, content_type = answer
    assert content_type == CONTENT_TYPE == "text/plain; version=0.0.4; charset=utf-8"
    text = body.decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, *sample.labels.values())
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    heads = [row.split()[2] for row in text.splitlines() if row.startswith("# TYPE")]
    assert len(heads) == len(set(heads)), "a family has more than one group"
    return found


def layers_of(answer: tuple[bytes, str], family: str = "snc_sigma") -> set[str]:
    return {key[2] for key in samples(answer) if key[0] == family}


def test_planted_values_stand_on_the_page_to_seven_digits(report, exposition):
    sigma, upper, threshold = [3.14159265, 0.0012345678], [3.5, 0.002], [3.0, 0.01]
    report("r", ["fc1.weight", "fc2.weight"], sigma=sigma, sigma_upper=upper, threshold=threshold)
    body, _ = exposition.metrics()
    assert b'\nsnc_sigma{run="r",layer="fc1.weight"} 3.141593\n' in body
    assert b'\nsnc_sigma{run="r",layer="fc2.weight"} 0.001234568\n' in body
    assert b'\nsnc_sigma_upper{run="r",layer="fc1.weight"} 3.5\n' in body
    assert b'\nsnc_threshold{run="r",layer="fc2.weight"} 0.01\n' in body
    found = samples((body, CONTENT_TYPE))
    ratio = found["snc_threshold_ratio", "r", "fc1.weight"]
    assert ratio == pytest.approx(3.14159265 / 3.0, rel=1e-6)
    assert found["snc_run_worst_ratio", "r"] == pytest.approx(ratio, rel=1e-6)
    assert found["snc_run_layers_breaching", "r"] == 1
    assert found["snc_breaches_total", "r"] == 1
    assert found["snc_events_total", "r", "breach", "warning"] == 1


def test_every_family_of_the_table_appears_with_its_type_and_help(report, exposition):
    report(
        "r",
        ["a"],
        sigma=[3.0],
        sigma_upper=[3.1],
        threshold=[2.0],
        scale=[0.6],
        scalars={"callback_seconds": 0.01, "step_seconds": 1.0},
    )
    text = exposition.metrics()[0].decode()
    for family in FAMILIES:
        assert f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.type}\n" in text
    names = {family.name for family in FAMILIES}
    assert len(names) == len(FAMILIES)
    ours = {row.split()[2] for row in text.splitlines() if row.startswith("# TYPE snc_")}
    assert ours == names
    assert "_created" not in text


def test_an_empty_store_shows_the_service_itself(exposition):
    found = samples(exposition.metrics())
    assert found["snc_ingest_batches_total", "accepted"] == 0
    assert found["snc_store_bytes",] > 0
    assert not [key for key in found if key[0] == "snc_sigma"]


def test_a_sigma_that_is_not_finite_is_visible_and_counted(report, exposition):
    sigma = [np.nan, np.inf, -np.inf, 1.0]
    report("r", ["a", "b", "c", "d"], sigma=sigma, threshold=[2.0] * 4)
    body, _ = exposition.metrics()
    for layer, text in zip("abcd", ("NaN", "+Inf", "-Inf", "1"), strict=True):
        assert f'snc_sigma{{run="r",layer="{layer}"}} {text}\n'.encode() in body
    found = samples((body, CONTENT_TYPE))
    assert found["snc_run_layers_nonfinite", "r"] == 3
    assert found["snc_run_worst_ratio", "r"] == 0.5
    assert found["snc_events_total", "r", "nonfinite", "critical"] == 1


def test_a_layer_without_a_threshold_has_no_threshold_series(report, exposition):
    report("r", ["a", "b"], sigma=[1.0, 1.0], threshold=[2.0, ABSENT])
    answer = exposition.metrics()
    assert layers_of(answer) == {"a", "b"}
    assert layers_of(answer, "snc_threshold") == {"a"}
    assert layers_of(answer, "snc_threshold_ratio") == {"a"}
    assert layers_of(answer, "snc_sigma_upper") == set()


def test_hostile_names_of_runs_and_layers_pass_through_the_store_as_one_label(report, exposition):
    names = [name for name in HOSTILE if "\n" not in name]  # the wire refuses control characters
    report("r", names, sigma=range(len(names)), name='n"\\%s')
    answer = exposition.metrics()
    assert layers_of(answer) == set(names)
    assert ("snc_run_info", "r", 'n"\\%s', "p") in samples(answer)


def test_a_large_step_is_written_in_full(report, exposition):
    report("r", ["a"], step=123_456_789, sigma=[1.0])
    assert b'snc_run_last_step{run="r"} 123456789\n' in exposition.metrics()[0]


def test_the_cap_shows_the_worst_layers_and_says_how_many_series_it_left_out(report, store, clock):
    names = [f"l{i}" for i in range(10)]
    sigma = [0.1 * i for i in range(10)]
    sigma[3] = np.nan
    report("r", names, sigma=sigma, threshold=[1.0] * 10)
    answer = Exposition(store, max_series=9, clock=clock).metrics()
    # Three series a layer: three layers. The broken one first, then the largest ratios.
    assert layers_of(answer) == {"l3", "l9", "l8"}
    assert samples(answer)["snc_series_omitted", "r"] == 21
    total = sum(1 for key in samples(answer) if key[0] in {f.name for f in LAYER_FAMILIES})
    assert total == 9


def test_nothing_is_omitted_while_everything_fits(report, store, clock):
    report("r", ["a", "b"], sigma=[1.0, 2.0], threshold=[4.0, 4.0])
    assert (
        samples(Exposition(store, max_series=6, clock=clock).metrics())["snc_series_omitted", "r"]
        == 0
    )
    answer = Exposition(store, max_series=0, clock=clock).metrics()
    assert layers_of(answer) == set()
    assert samples(answer)["snc_series_omitted", "r"] == 6


def test_a_newcomer_needs_five_minutes_and_a_lead_unless_it_breaches(report, store, clock):
    exposition = Exposition(store, max_series=3, clock=clock)

    def shown(a: float, b: float) -> set[str]:
        report("r", ["a", "b"], sigma=[a, b], threshold=[1.0, 1.0])
        return layers_of(exposition.metrics())

    assert shown(0.5, 0.4) == {"a"}
    assert shown(0.5, 0.9) == {"a"}  # shown for less than 5 minutes
    clock.now += 301
    assert shown(0.5, 0.52) == {"a"}  # a lead of 4 %
    assert shown(0.5, 0.53) == {"b"}
    assert shown(1.1, 0.53) == {"a"}  # a breach waits for nothing
    assert shown(1.1, np.nan) == {"b"}  # what is broken comes before a breach


def test_runs_share_the_cap_and_leave_what_they_do_not_need(report, store, clock):
    report("big", [f"b{i}" for i in range(100)], sigma=[1.0] * 100)
    report("small", ["s0", "s1"], sigma=[1.0, 1.0])
    answer = Exposition(store, max_series=20, clock=clock).metrics()
    assert sum(key[0] == "snc_sigma" and key[1] == "big" for key in samples(answer)) == 18
    assert {"s0", "s1"} <= layers_of(answer)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.integers(0, 500), max_size=9), st.integers(0, 999))
def test_fair_shares_never_exceed_the_budget_nor_a_need(needs, budget):
    shares = fair_shares(needs, budget)
    assert shares.keys() == needs.keys()
    assert all(0 <= shares[name] <= needs[name] for name in needs)
    assert sum(shares.values()) == min(budget, sum(needs.values()))
    # Whoever got less than it needs got no less than anybody else, rounding apart.
    cut = [shares[name] for name in needs if shares[name] < needs[name]]
    assert not cut or max(shares.values()) - min(cut) <= 1


def test_two_scrapes_are_equal_and_a_new_row_changes_them(report, exposition):
    report("r", ["a", "b"], sigma=[1.0, 2.0])
    first = exposition.metrics(["runs", "layers"])
    assert exposition.metrics(["runs", "layers"]) == first
    report("r", ["a", "b"], sigma=[1.5, 2.0])
    found = samples(exposition.metrics())
    assert (found["snc_sigma", "r", "a"], found["snc_run_last_step", "r"]) == (1.5, 1)


def test_a_finished_run_is_inactive_at_once_and_leaves_after_five_minutes(
    report, store, clock, exposition
):
    report("r", ["a"], sigma=[1.0])
    assert samples(exposition.metrics())["snc_run_active", "r"] == 1
    clock.now += 10
    store.runs.finish("r", "finished", clock.now)
    found = samples(exposition.metrics())
    assert (found["snc_run_active", "r"], found["snc_sigma", "r", "a"]) == (0, 1.0)
    clock.now += 301
    assert not [key for key in samples(exposition.metrics()) if "r" in key[1:]]


def test_a_silent_run_keeps_its_own_series_for_a_day_and_its_layers_for_a_quarter_of_an_hour(
    report, store, clock, exposition
):
    report("r", ["a"], sigma=[1.0])
    clock.now += 400
    store.runs.mark_silent(clock.now - 300, clock.now)
    found = samples(exposition.metrics())
    assert (found["snc_run_active", "r"], found["snc_sigma", "r", "a"]) == (1, 1.0)
    assert found["snc_run_silent", "r"] == 1
    assert found["snc_events_total", "r", "run_silent", "warning"] == 1
    clock.now += 901
    found = samples(exposition.metrics())
    assert found["snc_run_active", "r"] == 1
    assert ("snc_sigma", "r", "a") not in found
    clock.now += 86_400
    assert ("snc_run_active", "r") not in samples(exposition.metrics())


def test_a_deleted_run_is_gone(report, store, exposition):
    report("r", ["a"], sigma=[1.0])
    exposition.metrics()
    store.runs.delete("r")
    assert not [key for key in samples(exposition.metrics()) if "r" in key[1:]]


def test_one_run_alone_is_shown_in_full_whatever_the_cap(report, store, clock):
    names = [f"l{i}" for i in range(50)]
    report("r", names, sigma=[1.0] * 50)
    report("other", ["x"], sigma=[1.0])
    exposition = Exposition(store, max_series=3, clock=clock)
    answer = exposition.run_metrics("r")
    assert layers_of(answer) == set(names)
    assert {key[1] for key in samples(answer)} == {"r"}
    with pytest.raises(RunUnknown):
        exposition.run_metrics("nobody")


def test_parts_can_be_collected_alone_and_add_up_to_the_whole(report, exposition):
    report("r", ["a"], sigma=[1.0])
    whole = samples(exposition.metrics()).keys()
    parts = [samples(exposition.metrics([part])).keys() for part in ("process", "runs", "layers")]
    assert whole == parts[0] | parts[1] | parts[2]
    assert sum(map(len, parts)) == len(whole)


def test_service_discovery_gives_every_run_an_instance_of_its_own(report, exposition):
    assert exposition.service_discovery("snc:8470") == []
    report("a", ["x"], sigma=[1.0])
    report("b", ["x"], sigma=[1.0])
    assert exposition.service_discovery("snc:8470") == [
        {
            "targets": ["snc:8470"],
            "labels": {"__metrics_path__": f"/metrics/runs/{run}", "instance": f"snc:8470/{run}"},
        }
        for run in ("a", "b")
    ]


def test_ingest_is_counted_by_outcome_and_timed(exposition):
    exposition.observe_batch("accepted", 20, 144, 0.015)
    exposition.observe_batch("refused", 0, 100, 0.0005)
    found = samples(exposition.metrics())
    assert found["snc_ingest_batches_total", "accepted"] == 1
    assert found["snc_ingest_batches_total", "refused"] == 1
    assert found["snc_ingest_values_total",] == 20
    assert found["snc_ingest_bytes_total",] == 244
    assert found["snc_ingest_seconds_bucket", "0.02"] == 2
    assert found["snc_ingest_seconds_bucket", "0.01"] == 1


def test_two_services_in_one_process_share_no_counter(store):
    one, other = Exposition(store), Exposition(store)
    one.observe_batch("accepted", 1, 1, 0.1)
    assert samples(other.metrics())["snc_ingest_values_total",] == 0


def test_values_lost_by_the_client_are_counted(report, exposition):
    report("r", ["a"], sigma=[1.0], dropped=7)
    assert samples(exposition.metrics())["snc_dropped_values_total", "r"] == 7


def test_scrapes_from_many_threads_during_ingest_are_each_whole(report, exposition):
    names = [f"l{i}" for i in range(20)]
    report("r", names, sigma=[0.0] * 20)
    torn: list[object] = []

    def scrape() -> None:
        for _ in range(15):
            values = {v for k, v in samples(exposition.metrics(["layers"])).items()}
            if len(values) != 1:
                torn.append(values)

    threads = [threading.Thread(target=scrape) for _ in range(3)]
    for thread in threads:
        thread.start()
    for row in range(1, 15):
        report("r", names, sigma=[float(row)] * 20)
    for thread in threads:
        thread.join()
    assert not torn


def test_what_the_store_could_not_say_is_asked_again(report, store, exposition, monkeypatch):
    report("r", ["a"], sigma=[1.0])
    with monkeypatch.context() as patch:

        def away(*_: object) -> None:
            raise StoreUnavailable("away")

        patch.setattr(store.histories, "latest_scalars", away)
        with pytest.raises(StoreUnavailable):
            exposition.metrics()
    assert samples(exposition.metrics())["snc_sigma", "r", "a"] == 1


def test_a_value_that_came_back_is_shown_like_one_that_stayed(report, exposition):
    for sigma in (1.0, 2.0, 2.0, np.nan, 1.0, 1.0):
        report("r", ["a", "b"], sigma=[sigma, 3.0], threshold=[4.0, 4.0])
        found = samples(exposition.metrics())
        np.testing.assert_equal(found["snc_sigma", "r", "a"], sigma)
        assert found["snc_threshold", "r", "a"] == 4


def test_an_app_changes_nothing_that_other_registries_of_the_process_see():
    registry = prometheus_client.CollectorRegistry()
    prometheus_client.Counter("jobs", "of somebody else", registry=registry)
    before = prometheus_client.generate_latest(registry)
    assert b"jobs_created" in before
    text = ProcessMetrics({}).render(openmetrics=True)
    assert b"_created" not in text
    assert b"snc_ingest_values_total" in text
    assert prometheus_client.generate_latest(registry) == before
