"""The settings of the service: one frozen object from the ``SNC_*`` environment."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

MIB = 1024 * 1024
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")

_HOST = re.compile(r"[A-Za-z0-9:]([A-Za-z0-9.:_-]{0,251}[A-Za-z0-9:])?")
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")


class SettingsError(ValueError):
    """An invalid setting; the message names its variable and the cure."""


@dataclass(frozen=True)
class Settings:
    """The service's settings. Raises `SettingsError`, one sentence naming the variable."""

    store: str = field(default="sqlite:///snc.db", repr=False)
    """SNC_STORE: the URL of the store, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME;
    may hold a password, so it is never shown."""

    store_read: str | None = field(default=None, repr=False)
    """SNC_STORE_READ: the URL of a standby of a PostgreSQL store, which answers queries for history
    where it is up to date; may hold a password, so it is never shown."""

    store_connections: int = 16
    """SNC_STORE_CONNECTIONS: the most connections to PostgreSQL; fewer if the role may have fewer.
    A standby gets as many."""

    workers: int = 1
    """SNC_WORKERS: processes that share the port, each a service of its own on a PostgreSQL store;
    limits, and connections to the store, count for each."""

    host: str = "127.0.0.1"
    """SNC_HOST: the address to listen on. An address beyond loopback needs a token in the store."""

    port: int = 8470
    """SNC_PORT: 0 takes a free one."""

    insecure: bool = False
    """SNC_INSECURE: without any token, serve every client that reaches the port, on any address."""

    allowed_hosts: tuple[str, ...] = ()
    """SNC_ALLOWED_HOSTS: names, separated by commas, under which a browser may reach the service
    besides loopback: those of a reverse proxy on this machine."""

    public_host: str | None = None
    """SNC_PUBLIC_HOST: host:port under which Prometheus reaches the service, for the targets of
    service discovery. The default is the Host header of the request."""

    reads_at_once: int = 8
    """SNC_READS_AT_ONCE: reads of much history at once, of all clients; more of them wait."""

    streams: int = 200
    """SNC_STREAMS: open streams of all clients; then 503."""

    metrics_series: int = 10_000
    """SNC_METRICS_SERIES: the maximum number of per-layer series on /metrics."""

    silent_seconds: float = 300.0
    """SNC_SILENT_SECONDS: an active run without a batch for this long is silent."""

    keep_days: float = 0
    """SNC_KEEP_DAYS: ended or silent runs are deleted so long after their last batch; 0: never."""

    thin_days: float = 0
    """SNC_THIN_DAYS: ended or silent runs lose their exact values this long after their last batch
    and keep min, max and mean of every 32 measured steps, a tenth of the bytes; 0: never."""

    keep_bytes: int = 0
    """SNC_KEEP_BYTES: the maximum bytes of history; above it, ended or silent runs are deleted, the
    oldest first. The database needs a tenth more. 0: no limit."""

    max_body_bytes: int = 8 * MIB
    """SNC_MAX_BODY_BYTES: the largest body, compressed or inflated."""

    max_json_bytes: int = 2 * MIB
    """SNC_MAX_JSON_BYTES: the largest JSON body."""

    max_inflight_bytes: int = 64 * MIB
    """SNC_MAX_INFLIGHT_BYTES: bodies held at once for all clients together; above it, 503."""

    token_inflight_bytes: int = 16 * MIB
    """SNC_TOKEN_INFLIGHT_BYTES: bodies held at once for one token; above it, 429."""

    token_requests_per_second: float = 1_000.0
    """SNC_TOKEN_REQUESTS_PER_SECOND: requests of one token, averaged over a second; then 429."""

    token_requests_at_once: int = 128
    """SNC_TOKEN_REQUESTS_AT_ONCE: concurrent requests of one token, with open streams; then 429."""

    token_reads_at_once: int = 4
    """SNC_TOKEN_READS_AT_ONCE: reads of much history of one token at once; more of them wait."""

    token_streams: int = 64
    """SNC_TOKEN_STREAMS: open streams of one token; then 429."""

    token_runs: int = 1_000
    """SNC_TOKEN_RUNS: existing runs that one token has created; then 403."""

    run_metrics: int = 64
    """SNC_RUN_METRICS: names of metrics that one run may use; every batch writes the newest value
    of each; then 422, as with those below."""

    run_scalars: int = 512
    """SNC_RUN_SCALARS: names of scalars that one run may use."""

    run_layers: int = 65_536
    """SNC_RUN_LAYERS: names of layers that one run may use, over all its layer tables."""

    run_table_layers: int = 1_000_000
    """SNC_RUN_TABLE_LAYERS: layers of all layer tables of one run together, of each at least
    1,000."""

    run_layouts: int = 4_096
    """SNC_RUN_LAYOUTS: combinations of a layer table, metrics and scalars that the batches of one
    run may have."""

    run_writers: int = 10_000
    """SNC_RUN_WRITERS: writers that one run may have; each start of a job is one."""

    run_attempts: int = 10_000
    """SNC_RUN_ATTEMPTS: attempts that one run may have; each time that its steps go back is one."""

    run_annotations: int = 1_000
    """SNC_RUN_ANNOTATIONS: annotations that one run may have."""

    run_commands: int = 10_000
    """SNC_RUN_COMMANDS: commands that one run may have been sent."""

    run_versions: int = 10_000
    """SNC_RUN_VERSIONS: versions of the policy, and of the rule settings, of one run or project."""

    run_events: int = 100_000
    """SNC_RUN_EVENTS: events of one run that are kept; beyond it the oldest are forgotten."""

    run_incidents: int = 1_000
    """SNC_RUN_INCIDENTS: incidents of one run that are kept after they are over."""

    store_tokens: int = 10_000
    """SNC_STORE_TOKENS: tokens, revoked ones included; then 422, as with those below."""

    store_projects: int = 10_000
    """SNC_STORE_PROJECTS: projects with a policy of their own, and with rule settings."""

    store_silences: int = 1_000
    """SNC_STORE_SILENCES: silences in force."""

    store_routings: int = 10_000
    """SNC_STORE_ROUTINGS: versions of the routing of alerts."""

    body_deadline_seconds: float = 30.0
    """SNC_BODY_DEADLINE_SECONDS: the longest time in which a body may arrive."""

    access_log: bool = True
    """SNC_ACCESS_LOG: a line of JSON on stderr per request."""

    alert_messages_per_minute: int = 20
    """SNC_ALERT_MESSAGES_PER_MINUTE: messages about one run to one receiver; then one a minute."""

    alert_networks: tuple[str, ...] = ()
    """SNC_ALERT_NETWORKS: networks, separated by commas, that receivers of alerts may be in
    although they are not public: 10.0.0.0/8, 127.0.0.1."""

    def __post_init__(self) -> None:
        if "://" not in self.store:
            raise SettingsError("SNC_STORE must be a URL such as sqlite:///snc.db")
        if self.workers > 1 and not self.store.startswith(_POSTGRES):
            raise SettingsError(
                f"SNC_WORKERS must be 1 with this store, got {self.workers}: one process writes an "
                "SQLite file; several need SNC_STORE=postgresql://..."
            )
        urls = (self.store, self.store_read or "")
        if self.store_read and not all(url.startswith(_POSTGRES) for url in urls):
            raise SettingsError(
                "SNC_STORE_READ must be a postgresql://... URL beside such a SNC_STORE: it is the "
                "standby of that server"
            )
        if not _HOST.fullmatch(self.host):
            raise SettingsError(f"SNC_HOST must be a host name or an address, got {self.host!r}")
        for setting, (least, most) in _BOUNDS.items():
            value = getattr(self, setting)
            if not least <= value <= most:
                raise SettingsError(
                    f"{variable(setting)} must be from {least} to {most}, got {value}"
                )
        self._check_hosts()

    def _check_hosts(self) -> None:
        for host in self.allowed_hosts:
            if not _HOST.fullmatch(host):
                raise SettingsError(f"SNC_ALLOWED_HOSTS must be host names, got {host!r}")
        if self.public_host is not None and not _HOST_AND_PORT.fullmatch(self.public_host):
            raise SettingsError("SNC_PUBLIC_HOST must be host or host:port, got a different text")
        for network in self.alert_networks:
            try:
                ip_network(network, strict=False)
            except ValueError:
                raise SettingsError(
                    f"SNC_ALERT_NETWORKS must be networks such as 10.0.0.0/8, got {network!r}"
                ) from None

    def check_exposure(self, has_tokens: bool) -> None:
        """Raise `SettingsError` if a service without any token would be reachable from outside."""
        if not (has_tokens or self.insecure or is_loopback(self.host)):
            raise SettingsError(
                f"SNC_HOST must be a loopback address while the store holds no token, "
                f"got {self.host!r}: make one with `snc token create NAME --scope admin --store "
                f"...`, or say --insecure (SNC_INSECURE=1)"
            )

    @classmethod
    def from_env(cls, environ: Mapping[str, str], **overrides: Any) -> Settings:
        """Read ``SNC_*``; ``overrides`` (command-line options) apply where they are not None.

        An empty variable counts as unset. ``SNC_STORE_FILE`` names a file that contains
        SNC_STORE, ``SNC_STORE_READ_FILE`` one with SNC_STORE_READ.
        """
        values: dict[str, Any] = {}
        for each in fields(cls):
            text = _text(environ, variable(each.name))
            if text:
                values[each.name] = _READERS[str(each.type)](variable(each.name), text)
        values.update({name: value for name, value in overrides.items() if value is not None})
        return cls(**values)


def variable(setting: str) -> str:
    """Return the environment variable of a setting."""
    return f"SNC_{setting.upper()}"


def is_loopback(host: str) -> bool:
    """Return whether ``host`` is reachable only from this machine."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _text(environ: Mapping[str, str], name: str) -> str:
    path = environ.get(f"{name}_FILE", "").strip() if name in _SECRET else ""
    if not path:
        return environ.get(name, "").strip()
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{name}_FILE must name a readable file: {error}") from None


def _whole(name: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise SettingsError(f"{name} must be a whole number, got {text!r}")
    return int(text)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{name} must be a number, got {text!r}") from None


def _switch(name: str, text: str) -> bool:
    switch = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in switch:
        raise SettingsError(f"{name} must be 1 or 0, got {text!r}")
    return switch[text.lower()]


def _as_is(name: str, text: str) -> str:
    return text


def _list(name: str, text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_READERS: Mapping[str, Callable[[str, str], Any]] = {
    "str": _as_is,
    "str | None": _as_is,
    "int": _whole,
    "float": _number,
    "bool": _switch,
    "tuple[str, ...]": _list,
}
_POSTGRES = ("postgresql://", "postgres://")
_SECRET = ("SNC_STORE", "SNC_STORE_READ")
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "port": (0, 65_535),
    "store_connections": (2, 1_000),
    "workers": (1, 64),
    "metrics_series": (0, 10_000_000),
    "silent_seconds": (1, 30 * 86_400),
    "keep_days": (0, 36_500),
    "thin_days": (0, 36_500),
    "keep_bytes": (0, 2**53),
    "max_body_bytes": (1_024, 1_024 * MIB),
    "max_json_bytes": (1_024, 1_024 * MIB),
    "max_inflight_bytes": (1_024, 64 * 1_024 * MIB),
    "token_inflight_bytes": (1_024, 64 * 1_024 * MIB),
    "token_requests_per_second": (0.1, 1_000_000),
    "token_requests_at_once": (1, 1_000_000),
    "reads_at_once": (1, 32),
    "streams": (1, 10_000),
    "token_reads_at_once": (1, 32),
    "token_streams": (1, 10_000),
    "token_runs": (0, 1_000_000_000),
    "run_metrics": (1, 1_000_000),
    "run_scalars": (1, 1_000_000),
    "run_layers": (1, 65_536),
    "run_table_layers": (1_000, 1_000_000_000),
    "run_layouts": (1, 1_000_000),
    "run_writers": (1, 1_000_000_000),
    "run_attempts": (1, 1_000_000),
    "run_annotations": (0, 100_000),
    "run_commands": (0, 2**31 - 1),
    "run_versions": (1, 2**31 - 2),
    "run_events": (1_000, 2**53),
    "run_incidents": (10, 1_000_000),
    "store_tokens": (1, 1_000_000),
    "store_projects": (0, 1_000_000),
    "store_silences": (0, 100_000),
    "store_routings": (1, 2**31 - 2),
    "alert_messages_per_minute": (1, 1_000),
    "body_deadline_seconds": (0.1, 3_600),
}
