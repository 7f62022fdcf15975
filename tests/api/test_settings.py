"""Settings: read once, checked when built, and a wrong one named in one sentence."""

import re
from dataclasses import fields

import pytest

from snc_service.settings import Settings, SettingsError, is_loopback, variable


def test_without_a_variable_the_service_listens_on_loopback_with_the_embedded_store():
    settings = Settings.from_env({})
    assert (settings.host, settings.port, settings.store) == ("127.0.0.1", 8470, "sqlite:///snc.db")
    assert settings.metrics_series == 10_000
    assert settings.silent_seconds == 300
    assert settings.max_body_bytes == 8 * 1024 * 1024
    assert settings.max_json_bytes == 2 * 1024 * 1024


def test_every_setting_is_read_from_its_variable():
    environ = {
        "SNC_STORE": "postgresql://primary/snc",
        "SNC_STORE_READ": "postgres://standby/snc",
        "SNC_STORE_CONNECTIONS": "7",
        "SNC_WORKERS": "3",
        "SNC_HOST": "0.0.0.0",
        "SNC_PORT": "9000",
        "SNC_INSECURE": "1",
        "SNC_ALLOWED_HOSTS": "snc.example, other.example",
        "SNC_PUBLIC_HOST": "snc.example:9000",
        "SNC_METRICS_SERIES": "500",
        "SNC_SILENT_SECONDS": "12.5",
        "SNC_KEEP_DAYS": "30.5",
        "SNC_THIN_DAYS": "7",
        "SNC_KEEP_BYTES": "1000000000",
        "SNC_MAX_BODY_BYTES": "4096",
        "SNC_MAX_JSON_BYTES": "2048",
        "SNC_MAX_INFLIGHT_BYTES": "8192",
        "SNC_TOKEN_INFLIGHT_BYTES": "8192",
        "SNC_TOKEN_REQUESTS_PER_SECOND": "2.5",
        "SNC_TOKEN_REQUESTS_AT_ONCE": "7",
        "SNC_READS_AT_ONCE": "6",
        "SNC_STREAMS": "60",
        "SNC_TOKEN_READS_AT_ONCE": "5",
        "SNC_TOKEN_STREAMS": "50",
        "SNC_TOKEN_RUNS": "7",
        "SNC_RUN_METRICS": "21",
        "SNC_RUN_SCALARS": "22",
        "SNC_RUN_LAYERS": "23",
        "SNC_RUN_TABLE_LAYERS": "2400",
        "SNC_RUN_LAYOUTS": "25",
        "SNC_RUN_WRITERS": "26",
        "SNC_RUN_ATTEMPTS": "27",
        "SNC_RUN_ANNOTATIONS": "28",
        "SNC_RUN_COMMANDS": "29",
        "SNC_RUN_VERSIONS": "30",
        "SNC_RUN_EVENTS": "2900",
        "SNC_RUN_INCIDENTS": "32",
        "SNC_STORE_TOKENS": "41",
        "SNC_STORE_PROJECTS": "42",
        "SNC_STORE_SILENCES": "43",
        "SNC_STORE_ROUTINGS": "44",
        "SNC_BODY_DEADLINE_SECONDS": "2",
        "SNC_ALERT_MESSAGES_PER_MINUTE": "9",
        "SNC_ALERT_NETWORKS": "10.0.0.0/8, ::1",
        "SNC_ACCESS_LOG": "0",
    }
    assert set(environ) == {variable(each.name) for each in fields(Settings)}
    settings = Settings.from_env(environ)
    assert settings == Settings(
        store="postgresql://primary/snc",
        store_read="postgres://standby/snc",
        store_connections=7,
        workers=3,
        host="0.0.0.0",
        port=9000,
        insecure=True,
        allowed_hosts=("snc.example", "other.example"),
        public_host="snc.example:9000",
        metrics_series=500,
        silent_seconds=12.5,
        keep_days=30.5,
        thin_days=7,
        keep_bytes=1_000_000_000,
        max_body_bytes=4096,
        max_json_bytes=2048,
        max_inflight_bytes=8192,
        token_inflight_bytes=8192,
        token_requests_per_second=2.5,
        token_requests_at_once=7,
        reads_at_once=6,
        streams=60,
        token_reads_at_once=5,
        token_streams=50,
        token_runs=7,
        run_metrics=21,
        run_scalars=22,
        run_layers=23,
        run_table_layers=2400,
        run_layouts=25,
        run_writers=26,
        run_attempts=27,
        run_annotations=28,
        run_commands=29,
        run_versions=30,
        run_events=2900,
        run_incidents=32,
        store_tokens=41,
        store_projects=42,
        store_silences=43,
        store_routings=44,
        body_deadline_seconds=2.0,
        alert_messages_per_minute=9,
        alert_networks=("10.0.0.0/8", "::1"),
        access_log=False,
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("SNC_STORE", "snc.db"),
        ("SNC_STORE_READ", "postgresql://standby/snc"),
        ("SNC_STORE_CONNECTIONS", "1"),
        ("SNC_WORKERS", "2"),
        ("SNC_WORKERS", "0"),
        ("SNC_HOST", "two words"),
        ("SNC_ALERT_NETWORKS", "intranet"),
        ("SNC_ALERT_NETWORKS", "10.0.0.0/33"),
        ("SNC_PORT", "eighty"),
        ("SNC_PORT", "-1"),
        ("SNC_PORT", "65536"),
        ("SNC_PORT", "8470.5"),
        ("SNC_PORT", "9" * 30),
        ("SNC_INSECURE", "maybe"),
        ("SNC_ALLOWED_HOSTS", "good.example,bad host"),
        ("SNC_PUBLIC_HOST", "http://snc.example/"),
        ("SNC_METRICS_SERIES", "many"),
        ("SNC_SILENT_SECONDS", "nan"),
        ("SNC_SILENT_SECONDS", "inf"),
        ("SNC_SILENT_SECONDS", "0"),
        ("SNC_SILENT_SECONDS", "soon"),
        ("SNC_MAX_BODY_BYTES", "0"),
        ("SNC_MAX_JSON_BYTES", "1e6"),
        ("SNC_MAX_INFLIGHT_BYTES", "-5"),
        ("SNC_TOKEN_INFLIGHT_BYTES", "0"),
        ("SNC_TOKEN_REQUESTS_PER_SECOND", "0"),
        ("SNC_TOKEN_REQUESTS_PER_SECOND", "nan"),
        ("SNC_TOKEN_REQUESTS_AT_ONCE", "0"),
        ("SNC_TOKEN_RUNS", "-1"),
        ("SNC_BODY_DEADLINE_SECONDS", "0"),
        ("SNC_ACCESS_LOG", "loud"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_its_variable(name, text):
    with pytest.raises(SettingsError) as refused:
        Settings.from_env({name: text})
    assert name in str(refused.value)
    assert " must be " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_empty_variable_counts_as_not_set():
    assert Settings.from_env({"SNC_PORT": "", "SNC_HOST": "  "}) == Settings()


def test_options_of_the_command_line_win_over_the_environment():
    environ = {"SNC_PORT": "9000", "SNC_STORE": "sqlite:///a.db"}
    settings = Settings.from_env(environ, port=9001, store=None)
    assert (settings.port, settings.store) == (9001, "sqlite:///a.db")


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::"])
def test_another_address_than_loopback_needs_a_token_or_insecure(host):
    with pytest.raises(SettingsError, match=re.escape("--insecure")) as refused:
        Settings(host=host).check_exposure(has_tokens=False)
    assert "snc token create" in str(refused.value)
    Settings(host=host).check_exposure(has_tokens=True)
    Settings(host=host, insecure=True).check_exposure(has_tokens=False)
    Settings().check_exposure(has_tokens=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_is_known_by_its_addresses(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example", "example"])
def test_other_addresses_are_not_loopback(host):
    assert not is_loopback(host)


def test_the_store_is_never_shown_as_it_may_hold_a_password():
    secret = "hunter2"
    settings = Settings(store=f"postgresql://snc:{secret}@db/snc")
    assert secret not in repr(settings)
    with pytest.raises(SettingsError) as refused:
        Settings.from_env({"SNC_STORE": secret})
    assert secret not in str(refused.value)


def test_the_store_can_come_out_of_a_file(tmp_path):
    path = tmp_path / "store"
    path.write_text("sqlite:///from-a-file.db\n")
    assert Settings.from_env({"SNC_STORE_FILE": str(path)}).store == "sqlite:///from-a-file.db"
    with pytest.raises(SettingsError, match="SNC_STORE_FILE must name a readable file"):
        Settings.from_env({"SNC_STORE_FILE": str(tmp_path / "missing")})
