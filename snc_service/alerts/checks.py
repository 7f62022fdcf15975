"""Checks of the values in a routing document: each error names the wrong key and the cure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from snc_service.wire import RUN_NAME, WireError
from snc_service.wire.checks import printable, shown, whole

HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:_-]{0,251}[A-Za-z0-9])?")
MAX_URL_BYTES = 2_048
_MAILBOX = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}")


def table(value: object, where: str) -> Mapping[str, Any]:
    """Return ``value`` if it is an object (JSON) or a table (TOML)."""
    if not isinstance(value, Mapping):
        raise WireError(where, f"must be an object, got {shown(value)}")
    return value


def known_keys(value: Mapping[str, Any], where: str, known: Iterable[str]) -> None:
    """Refuse an unknown key, so that a typo is not ignored."""
    known = sorted(known)
    for key in value:
        if key not in known:
            name = f"{where}.{key}" if where else key
            raise WireError(name[:120], f"is not known here: use {', '.join(known)}")


def names(value: object, where: str) -> tuple[str, ...]:
    """Return distinct names of receivers."""
    if not isinstance(value, list):
        raise WireError(where, f"must be a list of names, got {shown(value)}")
    for name in value:
        if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
            raise WireError(
                where, f"must be names that match {RUN_NAME.pattern}, got {shown(name)}"
            )
    return tuple(dict.fromkeys(value))


def choice(value: object, where: str, choices: Sequence[str]) -> str:
    """Return ``value`` if it is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise WireError(where, f"must be one of {', '.join(choices)}, got {shown(value)}")
    return value


def glob(value: object, where: str) -> str:
    """Return a glob over names."""
    return printable(value, where, max_bytes=256)


def seconds(value: object, where: str, least: float) -> float:
    """Return a time from ``least`` seconds to 30 days."""
    most = 30 * 86_400
    ok = isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most
    if not ok:
        raise WireError(where, f"must be from {least:g} to {most} seconds, got {shown(value)}")
    return float(value)  # type: ignore[arg-type] # just looked


def port(value: object, where: str) -> int:
    """Return a port."""
    return whole(value, where, least=1, most=65_535)


def host(value: object, where: str) -> str:
    """Return a host's name or address, without brackets."""
    if not isinstance(value, str) or not HOST.fullmatch(value):
        raise WireError(where, f"must be a host name or an address, got {shown(value)}")
    return value


def secret(value: object, where: str, least: int = 1) -> str:
    """Return a secret; its error never contains it."""
    if not isinstance(value, str) or not least <= len(value) <= 1_024 or not value.isprintable():
        raise WireError(where, f"must be a text of {least} to 1024 printable characters")
    return value


def mailbox(value: object, where: str) -> str:
    """Return a bare mail address such as ``alerts@example.org``."""
    if not isinstance(value, str) or not _MAILBOX.fullmatch(value):
        raise WireError(where, f"must be an address such as a@example.org, got {shown(value)}")
    return value


def link(value: object, where: str) -> str:
    """Return an http(s) URL. The error does not contain it: the URL of a webhook is a secret."""
    expected = "must be a URL such as https://host/path"
    if not isinstance(value, str) or not 0 < len(value) <= MAX_URL_BYTES:
        raise WireError(where, expected)
    if not value.isascii() or not value.isprintable() or " " in value:
        raise WireError(where, f"{expected}, of printable ASCII characters without spaces")
    try:
        parts = urlsplit(value)
        named = HOST.fullmatch(parts.hostname or "") is not None
        usable = parts.scheme in ("http", "https") and named and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise WireError(where, expected)
    if "@" in parts.netloc:
        raise WireError(where, f"{expected}, without user name and password")
    if parts.fragment:
        raise WireError(where, f"{expected}, without a fragment")
    return value
