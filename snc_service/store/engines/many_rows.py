"""SQLite: one statement for many rows, in place of one step per row."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import count
from typing import Final

_INSERT: Final = re.compile(r"(insert into .* values )(\([?, ]+\))( on conflict .*)?")
_UPDATE: Final = re.compile(r"update (\w+) set (.*) where (.*)")


@lru_cache(maxsize=1_024)
def for_many(sql: str, num_rows: int) -> str | None:
    """Return the many-row form of ``sql``, None for statements without one."""
    if insert := _INSERT.fullmatch(sql):
        before, row, after = insert.groups()
        return f"{before}{', '.join([row] * num_rows)}{after or ''}"
    if update := _UPDATE.fullmatch(sql):
        table, changes, condition = update.groups()
        number = count(1)
        changes, condition = (
            re.sub(r"\?", lambda _: f"new.column{next(number)}", part)
            for part in (changes, condition)
        )
        row = f"({', '.join('?' * (next(number) - 1))})"
        rows = ", ".join([row] * num_rows)
        return f"update {table} set {changes} from (values {rows}) as new where {condition}"
    return None
