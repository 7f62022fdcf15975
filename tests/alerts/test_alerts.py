"""A whole service and real receivers: told once, at least once, and never at the others' cost."""

import logging
import threading
from contextlib import ExitStack

import pytest
from api_cases import RUN, Clock, batch_of, register, serving_app, settings_in, table_of
from listeners import LOOPBACK, hangs, listening, nobody, says, until
from prometheus_client.parser import text_string_to_metric_families

from snc_service.alerts import plan, worker
from snc_service.settings import Settings
from snc_service.store.types import StoreUnavailable

TABLE = table_of("fc1.weight", "fc2.weight")
SECRET = "a secret of sixteen characters"


class Watched:
    """A service with run ``r``, fed step by step; sigma above 2 is a breach."""

    def __init__(self, api, clock):
        self.api, self.clock = api, clock
        self.seq = self.step = 0
        register(api, TABLE)

    def route(self, *, routes=None, **receivers):
        document = {
            "receivers": {
                name: {"type": "webhook", "url": url, "secret": SECRET}
                if isinstance(url, str)
                else url
                for name, url in receivers.items()
            },
            "routes": routes or [{"receivers": list(receivers)}],
        }
        told = self.api.put("/api/v1/alerting", json=document)
        assert told.status_code == 200, told.text

    def train(self, steps=1, sigma=1.0, layer=0, **scalars):
        """Send steps of one batch; ``sigma`` is that of one layer."""
        row = [1.0, 1.0]
        row[layer] = sigma
        at = tuple(range(self.step, self.step + steps))
        extra = {name: [value] * steps for name, value in scalars.items()}
        batch = batch_of(TABLE, self.seq, at, scalars=extra, sigma=[row] * steps,
                         threshold=[[2.0, 2.0]] * steps)  # fmt: skip
        assert self.api.send(batch).status_code == 200
        self.seq, self.step = self.seq + 1, self.step + steps

    def incidents(self, **query):
        return self.api.get("/api/v1/incidents", params=query).json()["items"]

    def pass_time(self, seconds):
        self.clock.now += seconds

    def deliveries(self):
        text = self.api.get("/metrics").text
        return {
            sample.labels["outcome"]: int(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "snc_alert_deliveries_total"
        }

    def told(self, count):
        """Wait until so many messages have been taken, and that is stored."""
        until(lambda: self.deliveries()["delivered"] == count)

    def health(self):
        return self.api.get("/api/v1/alerting/receivers").json()["items"][0]

    def settle(self):
        """Wait until nothing is due and nothing waits to be gathered."""

        def idle():
            work = self.api.service.store.incidents.work(self.clock())
            return not work.outbox and not work.due

        until(idle)


@pytest.fixture
def watched(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(worker, "IDLE_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(worker, "SWEEP_SECONDS", 0.05)
    clock = Clock()
    with serving_app(settings_in(tmp_path, alert_networks=LOOPBACK), clock=clock) as api:
        yield Watched(api, clock)


def test_a_breach_is_told_once_and_then_that_it_is_over(watched):
    with listening() as there:
        watched.route(pager=there.url)
        watched.train(3)
        watched.train(1, sigma=3.0, layer=1)
        watched.told(1)
        (firing,) = there.wait_for(1)
        told = firing.json()
        assert (told["status"], told["rule"], told["layer"]) == ("firing", "breach", "fc2.weight")
        assert (told["run"], told["project"], told["step"]) == ("r", "default", 3)
        watched.train(5, sigma=3.0, layer=1)  # it lasts: no second alert
        watched.train(49)
        watched.settle()
        assert len(there.heard) == 1
        watched.train(1)
        watched.told(2)
        _, over = there.wait_for(2)
        assert over.json()["status"] == "resolved"
        assert over.json()["incident"] == told["incident"]
        (incident,) = watched.incidents()
        assert incident["state"] == "resolved"


def test_rules_that_fire_together_are_one_alert_naming_the_first(watched):
    with listening() as there:
        watched.route(pager=there.url)
        watched.train(1)
        watched.train(1, sigma=3.0, layer=1)
        there.wait_for(1)
        watched.train(10)
        watched.train(1, sigma=float("nan"))  # critical: worth a second word
        _, worse = there.wait_for(2)
        told = worse.json()
        assert (told["status"], told["severity"]) == ("firing", "critical")
        assert (told["rule"], told["layer"]) == ("breach", "fc2.weight")
        assert [event["rule"] for event in told["events"]] == ["breach", "nonfinite"]
        assert len(watched.incidents()) == 1


def test_an_incident_that_lasts_is_told_again_at_the_interval(watched):
    with listening() as there:
        watched.route(pager=there.url, routes=[{"receivers": ["pager"], "repeat_seconds": 900}])
        watched.train(1, sigma=3.0)
        watched.told(1)
        watched.pass_time(899)
        watched.settle()
        assert len(there.heard) == 1
        watched.pass_time(1)
        again = there.wait_for(2)[1].json()
        assert again["status"] == "firing"


def test_what_is_acknowledged_is_not_told_again_until_it_is_worse(watched):
    with listening() as there:
        watched.route(pager=there.url, routes=[{"receivers": ["pager"], "repeat_seconds": 900}])
        watched.train(1, sigma=3.0)
        watched.told(1)
        (incident,) = watched.incidents(state="open")
        path = f"/api/v1/incidents/{incident['incident']}/acknowledge"
        known = watched.api.post(path, json={"comment": "on it"}).json()
        assert known["acknowledged_by"] == "anonymous"
        watched.pass_time(9_000)
        watched.settle()
        assert len(there.heard) == 1
        watched.train(1, sigma=float("inf"))
        assert there.wait_for(2)[1].json()["severity"] == "critical"


def test_a_silence_holds_back_what_matches_until_it_is_ended(watched):
    with listening() as there:
        watched.route(pager=there.url)
        body = {"rule": "breach", "run": "r*", "seconds": 600}
        silence = watched.api.post("/api/v1/silences", json=body).json()["silence"]
        watched.train(1, sigma=3.0)
        until(lambda: watched.incidents(state="open"))
        watched.settle()
        assert there.heard == []
        assert watched.api.delete(f"/api/v1/silences/{silence}").status_code == 204
        assert there.wait_for(1)[0].json()["rule"] == "breach"


def test_a_silence_that_runs_out_lets_what_still_stands_be_told(watched):
    with listening() as there:
        watched.route(pager=there.url)
        watched.api.post("/api/v1/silences", json={"seconds": 600})
        watched.train(1, sigma=3.0)
        until(lambda: watched.incidents(state="open"))
        watched.settle()
        assert there.heard == []
        watched.pass_time(601)
        there.wait_for(1)


def test_severity_and_project_decide_who_is_told(watched):
    with listening() as chat, listening() as pager, listening() as others:
        watched.route(
            chat=chat.url,
            pager=pager.url,
            others=others.url,
            routes=[
                {"receivers": ["chat"]},
                {"receivers": ["pager"], "severity": "critical"},
                {"receivers": ["others"], "project": "another"},
            ],
        )
        watched.train(1, sigma=3.0)
        chat.wait_for(1)
        watched.train(1, sigma=float("nan"))
        chat.wait_for(2)
        pager.wait_for(1)
        watched.settle()
        assert others.heard == []


def test_notices_are_for_those_who_ask_for_them(watched):
    with listening() as chatty, listening() as quiet:
        watched.route(
            chatty=chatty.url,
            quiet=quiet.url,
            routes=[
                {"receivers": ["chatty"], "severity": "info", "rules": ["policy_changed"]},
                {"receivers": ["quiet"]},
            ],
        )
        entries = [{"pattern": "*", "threshold": 1.0}]
        watched.api.put(f"{RUN}/policy", json={"entries": entries})
        told = chatty.wait_for(1)[0].json()
        assert (told["status"], told["rule"]) == ("notice", "policy_changed")
        watched.settle()
        assert quiet.heard == []


def test_whoever_is_routed_to_later_hears_of_what_is_open(watched):
    watched.train(1, sigma=3.0)
    until(lambda: watched.incidents(state="open"))
    with listening() as there:
        watched.route(pager=there.url)
        there.wait_for(1)


def test_a_receiver_that_hangs_holds_up_neither_ingest_nor_the_others(watched):
    with listening(hangs) as stuck, listening() as well:
        watched.route(stuck=stuck.url, well=well.url)
        watched.train(1, sigma=3.0)
        stuck.wait_for(1)
        well.wait_for(1)
        for _ in range(3):  # acknowledged and told while the other still hangs
            watched.train(60)
            watched.train(1, sigma=3.0)
        until(lambda: len(well.heard) >= 7)
        assert len(stuck.heard) == 1
        stuck.released.set()


def test_a_receiver_that_fails_is_told_once_it_is_well_and_only_what_stands(watched):
    with listening(says(500)) as there:
        watched.route(pager=there.url)
        watched.train(1, sigma=3.0)
        there.wait_for(1)
        assert until(lambda: watched.health()["waiting"]) == 1
        until(lambda: watched.health()["failures"] == 1)
        assert watched.health()["error"] == f"127.0.0.1:{there.port} answered 500"
        for count, wait in enumerate((1, 2, 4), 2):
            watched.pass_time(wait)
            until(lambda count=count: watched.health()["failures"] == count)
        there.answer = says(200)
        watched.pass_time(8)
        until(lambda: watched.health()["waiting"] == 0)
        assert watched.deliveries() == {
            "delivered": 1, "failed": 4, "refused": 0, "abandoned": 0
        }  # fmt: skip
        watched.train(51)
        assert there.wait_for(6)[-1].json()["status"] == "resolved"


def test_retry_after_is_waited_for(watched):
    with listening(says(503, Retry_After="600")) as there:
        watched.route(pager=there.url)
        watched.train(1, sigma=3.0)
        there.wait_for(1)
        until(lambda: watched.health()["failures"] == 1)
        watched.pass_time(599)
        watched.settle()
        assert len(there.heard) == 1
        watched.pass_time(1)
        there.wait_for(2)


def test_a_redirect_to_loopback_is_refused_and_counted(watched):
    with listening() as inside, listening(says(302, Location=inside.url)) as there:
        watched.route(pager=there.url)
        watched.train(1, sigma=3.0)
        until(lambda: watched.deliveries()["refused"] == 1)
        assert inside.heard == []


def test_a_receiver_of_our_own_network_is_refused_unless_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(worker, "IDLE_PAUSE_SECONDS", 0.02)
    with listening() as inside, serving_app(settings_in(tmp_path), clock=Clock()) as api:
        watched = Watched(api, Clock())
        watched.route(pager=inside.url)
        watched.train(1, sigma=3.0)
        until(lambda: watched.deliveries()["refused"] >= 1)
        told = api.get("/api/v1/alerting/receivers").json()["items"][0]
        assert "SNC_ALERT_NETWORKS=127.0.0.1" in told["error"]
        assert inside.heard == []


def test_after_a_day_of_failures_it_is_given_up_and_counted(watched, monkeypatch):
    monkeypatch.setattr(plan, "GIVE_UP_TRIES", 1)
    with nobody() as port:
        watched.route(pager=f"http://127.0.0.1:{port}/")
        watched.train(1, sigma=3.0)
        until(lambda: watched.health()["failures"] == 1)
        watched.pass_time(86_401)
        until(lambda: watched.deliveries()["abandoned"] == 1)
        watched.pass_time(86_401)
        watched.settle()
        assert watched.deliveries() == {
            "delivered": 0, "failed": 1, "refused": 0, "abandoned": 1
        }  # fmt: skip


def test_no_secret_is_logged_or_answered(watched, caplog):
    with caplog.at_level(logging.DEBUG), listening(says(500)) as there:
        watched.route(pager=there.url)
        watched.train(1, sigma=3.0)
        until(lambda: watched.deliveries()["failed"] == 1)
        answers = [
            watched.api.get(f"/api/v1/{path}").text
            for path in (
                "alerting",
                "alerting/versions",
                "alerting/receivers",
                "incidents",
                "audit",
            )
        ]
        answers.append(watched.api.post("/api/v1/alerting/test", json={"receiver": "pager"}).text)
    assert "pager did not take an alert" in caplog.text
    for text in (caplog.text, *answers):
        assert SECRET not in text
        assert "secret-path" not in text


def test_a_store_that_fails_for_a_while_costs_no_alert(watched, monkeypatch):
    monkeypatch.setattr(worker, "TROUBLE_SECONDS", 0.05)
    store = watched.api.service.store
    failed = threading.Event()

    def broken(*arguments, **more):
        failed.set()
        raise StoreUnavailable("disk full")

    with listening() as there, monkeypatch.context() as trouble:
        watched.route(pager=there.url)
        trouble.setattr(store.incidents, "gather", broken)
        watched.train(1, sigma=3.0)
        assert failed.wait(30)
        trouble.undo()
        there.wait_for(1)


def test_two_services_on_one_store_tell_once(store_url, monkeypatch):
    monkeypatch.setattr(worker, "PAUSE_SECONDS", 0.02)
    monkeypatch.setattr(worker, "IDLE_PAUSE_SECONDS", 0.02)
    settings = Settings(store=store_url, alert_networks=LOOPBACK)
    with listening() as there, ExitStack() as stack:
        first, _ = (stack.enter_context(serving_app(settings)) for _ in range(2))
        watched = Watched(first, first.service.clock)
        watched.route(pager=there.url)
        for _ in range(5):
            watched.train(1, sigma=3.0)
            watched.train(60)
        until(lambda: len(watched.incidents(state="resolved")) == 5)
        watched.settle()
        until(lambda: len(there.heard) >= 10)
    keys = [request.headers["X-Snc-Delivery"] for request in there.heard]
    assert len(keys) == len(set(keys)) == 10


def test_a_test_message_says_that_nothing_happened(watched):
    with listening() as there:
        watched.route(pager=there.url)
        told = watched.api.post("/api/v1/alerting/test", json={"receiver": "pager"}).json()
        assert told == {"receiver": "pager", "outcome": "delivered", "detail": ""}
        heard = there.wait_for(1)[0].json()
        assert heard["status"] == "test"
        assert "nothing happened" in heard["events"][0]["message"]


def test_a_service_stops_while_a_receiver_hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "CLOSING_SECONDS", 0.2)
    with listening(hangs) as stuck:
        with serving_app(settings_in(tmp_path, alert_networks=LOOPBACK)) as api:
            watched = Watched(api, api.service.clock)
            watched.route(stuck=stuck.url)
            watched.train(1, sigma=3.0)
            stuck.wait_for(1)
        stuck.released.set()
        until(lambda: not any(t.name == "snc-alert-lane" for t in threading.enumerate()))
