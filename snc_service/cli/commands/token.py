"""``snc token create``, ``list``, ``revoke``: on the store itself, or over REST as an admin.

On the store itself they need no running service, and no admin token if the last one is lost.
"""

from __future__ import annotations

import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from snc_service.cli.failure import Failure
from snc_service.cli.output import local_time, print_json, print_table
from snc_service.cli.service import ServiceClient

if TYPE_CHECKING:
    from snc_service.store import Store

OPERATOR = "operator"  # the author of changes made on the store itself
COLUMNS = ("name", "scopes", "project", "author", "created_at", "expires_at", "revoked_at")
_SECONDS = {"h": 3_600, "d": 86_400, "w": 7 * 86_400}


def create(arguments: Namespace) -> int:
    """Create a token and print its secret, alone on stdout; it cannot be shown again."""
    if arguments.store is not None:
        made = _create_in_store(arguments)
    else:
        with ServiceClient.of(arguments) as service:
            made = service.post("tokens", body=_wanted(arguments))
    if arguments.json:
        print_json(made)
        return 0
    print(f"Token {made['name']}: keep it, it is not shown again.", file=sys.stderr)
    print(made["token"])
    return 0


def list_tokens(arguments: Namespace) -> int:
    """List all tokens, including revoked and expired ones."""
    if arguments.store is not None:
        from snc_service.api.security.tokens import as_item

        with _store(arguments.store) as store:
            items = [as_item(token) for token in store.tokens.all()]
    else:
        with ServiceClient.of(arguments) as service:
            items = service.get("tokens")["items"]
    if arguments.json:
        print_json({"items": items, "next": None})
        return 0
    print_table(f"Tokens: {len(items)}", COLUMNS, [_row(item) for item in items])
    return 0


def revoke(arguments: Namespace) -> int:
    """Revoke a token."""
    if arguments.store is not None:
        with _store(arguments.store) as store:
            store.tokens.revoke(arguments.name, author=OPERATOR, now=time.time())
    else:
        with ServiceClient.of(arguments) as service:
            service.delete("tokens", arguments.name)
    print(f"Token {arguments.name} is revoked.", file=sys.stderr)
    return 0


def expiry(text: str, now: float) -> float:
    """Return Unix seconds after a duration such as ``90d``. Raises `Failure`."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})([hdw])", text)
    if match is None:
        raise Failure(f"--expires must be hours, days or weeks such as 12h, 90d, 4w, got {text!r}")
    return now + int(match[1]) * _SECONDS[match[2]]


def _wanted(arguments: Namespace) -> dict[str, Any]:
    expires_at = None
    if arguments.expires is not None:
        at = datetime.fromtimestamp(expiry(arguments.expires, time.time()), timezone.utc)
        expires_at = at.isoformat(timespec="seconds")
    return {
        "name": arguments.name,
        "scopes": sorted(set(arguments.scopes)),
        "project": arguments.project,
        "expires_at": expires_at,
    }


def _create_in_store(arguments: Namespace) -> dict[str, Any]:
    from pydantic import ValidationError

    from snc_service.api.security.tokens import TokenRequest, as_item
    from snc_service.auth import RESERVED, make_token
    from snc_service.problems import from_validation

    now = time.time()
    try:
        wanted = TokenRequest.model_validate(_wanted(arguments))
    except ValidationError as error:
        raise Failure(str(from_validation(list(error.errors())).detail)) from None
    if wanted.name in RESERVED:
        raise Failure(f"name must not be {wanted.name!r}: it is taken")
    token, secret = make_token(
        wanted.name,
        wanted.scopes,
        project=wanted.project,
        author=OPERATOR,
        now=now,
        expires_at=None if arguments.expires is None else expiry(arguments.expires, now),
    )
    with _store(arguments.store) as store:
        store.tokens.add(token)
    return as_item(token) | {"token": secret}


@contextmanager
def _store(url: str) -> Iterator[Store]:
    """Lend the store at ``url``; its errors become one sentence."""
    try:
        from snc_service.store import open_store
        from snc_service.store.types import StoreError
    except ModuleNotFoundError as error:
        raise Failure(
            f"--store needs {error.name}: pip install 'spectral-norm-constraint[service]'"
        ) from None
    try:
        store = open_store(url)
    except (StoreError, ValueError) as error:
        raise Failure(str(error)) from None
    try:
        yield store
    except StoreError as error:
        raise Failure(str(error)) from None
    finally:
        store.close()


def _row(item: dict[str, Any]) -> list[Any]:
    times = ("created_at", "expires_at", "revoked_at")
    shown = item | {name: local_time(item[name]) for name in times if item[name] is not None}
    shown["scopes"] = " ".join(item["scopes"])
    return [shown[name] for name in COLUMNS]
