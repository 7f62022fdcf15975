"""Receivers: one frozen class per type; its keys are checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from snc_service.alerts import checks
from snc_service.wire import WireError

MASK: Final = "********"
MIN_SECRET = 16  # characters: a signing secret must not be guessable
MAX_MAILBOXES = 20

Security: TypeAlias = Literal["starttls", "tls", "none"]
_PORTS: Final[Mapping[str, int]] = {"starttls": 587, "tls": 465, "none": 25}


@dataclass(frozen=True)
class Webhook:
    """A URL that accepts the JSON form of a message, signed with ``secret``."""

    TYPE: ClassVar = "webhook"
    SECRETS: ClassVar = ("secret",)
    name: str
    url: str = field(repr=False)
    secret: str = field(repr=False)

    @classmethod
    def parse(cls, name: str, value: Mapping[str, Any], where: str) -> Webhook:
        """Read its keys. Raises `WireError`."""
        _check_keys(cls, value, where)
        url = checks.link(value.get("url"), f"{where}.url")
        return cls(name, url, checks.secret(value.get("secret"), f"{where}.secret", MIN_SECRET))


@dataclass(frozen=True)
class Slack:
    """A URL that accepts the format of Slack's incoming webhooks; the URL is the secret."""

    TYPE: ClassVar = "slack"
    SECRETS: ClassVar = ()
    name: str
    url: str = field(repr=False)

    @classmethod
    def parse(cls, name: str, value: Mapping[str, Any], where: str) -> Slack:
        """Read its keys. Raises `WireError`."""
        _check_keys(cls, value, where)
        return cls(name, checks.link(value.get("url"), f"{where}.url"))


@dataclass(frozen=True)
class Alertmanager:
    """The base URL of a Prometheus Alertmanager, with optional HTTP basic authentication."""

    TYPE: ClassVar = "alertmanager"
    SECRETS: ClassVar = ("password",)
    name: str
    url: str = field(repr=False)
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, name: str, value: Mapping[str, Any], where: str) -> Alertmanager:
        """Read its keys. Raises `WireError`."""
        _check_keys(cls, value, where)
        url = checks.link(value.get("url"), f"{where}.url")
        if urlsplit(url).query:
            raise WireError(f"{where}.url", "must have no query: it is where the API begins")
        return cls(name, url.rstrip("/"), *_login(value, where))


@dataclass(frozen=True)
class Email:
    """Mailboxes, and the mail server that accepts mail for them."""

    TYPE: ClassVar = "email"
    SECRETS: ClassVar = ("password",)
    name: str
    host: str
    port: int
    security: Security
    from_: str
    to: tuple[str, ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, name: str, value: Mapping[str, Any], where: str) -> Email:
        """Read its keys. Raises `WireError`."""
        _check_keys(cls, value, where)
        security = checks.choice(
            value.get("security", "starttls"), f"{where}.security", tuple(_PORTS)
        )
        to = value.get("to")
        if not isinstance(to, list) or not 1 <= len(to) <= MAX_MAILBOXES:
            raise WireError(f"{where}.to", f"must be a list of 1 to {MAX_MAILBOXES} addresses")
        username, password = _login(value, where)
        if username is not None and security == "none":
            raise WireError(
                f"{where}.security", "must be starttls or tls: a password is never sent in clear"
            )
        return cls(
            name,
            checks.host(value.get("host"), f"{where}.host"),
            checks.port(value.get("port", _PORTS[security]), f"{where}.port"),
            security,  # type: ignore[arg-type] # one of the three
            checks.mailbox(value.get("from"), f"{where}.from"),
            tuple(checks.mailbox(each, f"{where}.to") for each in to),
            username,
            password,
        )


Receiver: TypeAlias = Webhook | Slack | Alertmanager | Email
TYPES: Final[Mapping[str, type[Webhook] | type[Slack] | type[Alertmanager] | type[Email]]] = {
    each.TYPE: each for each in (Webhook, Slack, Alertmanager, Email)
}


def place(receiver: Receiver) -> str:
    """Return scheme, host and port, the part of an address that may be shown and logged."""
    if isinstance(receiver, Email):
        return f"{receiver.host}:{receiver.port}"
    parts = urlsplit(receiver.url)
    return f"{parts.scheme}://{parts.netloc}"


def masked_url(kind: str, url: str) -> str:
    """Return a URL without its path and query, which may be secret."""
    if kind == Alertmanager.TYPE:
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/{MASK}"


def address(value: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the destination of a receiver's secrets, from its plain form."""
    return tuple(value.get(key) for key in ("url", "host", "port", "security", "username"))


def _login(value: Mapping[str, Any], where: str) -> tuple[str | None, str | None]:
    username, password = value.get("username"), value.get("password")
    if username is None and password is None:
        return None, None
    return (
        checks.secret(username, f"{where}.username"),
        checks.secret(password, f"{where}.password"),
    )


def _check_keys(kind: type[Any], value: Mapping[str, Any], where: str) -> None:
    known = [each.name.rstrip("_") for each in fields(kind) if each.name != "name"]
    checks.known_keys(value, where, [*known, "type"])
