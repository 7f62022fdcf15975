"""Which pickles torch may load: those that cannot make its safe loader work for hours, or crash us.

``weights_only=True`` runs no foreign code, but it hashes every key, allocates what a file asks for
and lets a file hide the methods of what it returns.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import Tensor

from snc_client.audit.formats.pickled import Bad, Made, Name, Reference, Table, inert
from snc_client.audit.formats.stored import shown

MOST_STEPS = 2_000_000  # 44,000 tensors; torch's loader takes some 4 us a step
# Keys whose hash a file can choose: with n equal ones a dict takes n^2 / 2 comparisons.
MOST_CHOSEN_KEYS = 10_000
MOST_VALUES_OF_A_KEY = 64
PLAIN_KEY = 1 << 20  # numbers of parameters: as many as these never collide
CODECS = ("latin1", "latin-1", "utf-8")


def require_harmless(raw: bytes, start: int = 0) -> int:
    """Return where the pickle at ``raw[start:]`` ends; raise `Bad` for one torch must not load."""
    watch = _Watch()
    _, end = inert(raw, start, most=MOST_STEPS, watch=watch)
    return end


class _Watch:
    def __init__(self) -> None:
        self.chosen = 0

    def __call__(self, value: Made | tuple[Any, Any]) -> None:
        if isinstance(value, tuple):
            self.key(value[0])
            return
        if value.state is not None:
            _require_no_method(value.state)
            return
        name = value.function.name if isinstance(value.function, Name) else ""
        given = value.arguments if isinstance(value.arguments, tuple) else (value.arguments,)
        if name in ("bytearray", "encode"):
            _require_text(name, given)
        elif name in ("set", "frozenset", "OrderedDict", "Counter", "dict"):
            self.items(given)
        for argument in given if name.startswith("_rebuild") else ():
            _require_no_method(argument)

    def items(self, given: tuple[Any, ...]) -> None:
        for argument in given:
            for item in argument if isinstance(argument, list | tuple) else ():
                self.key(item[0] if isinstance(item, list) and item else item)

    def key(self, key: Any) -> None:
        if key is None or isinstance(key, str | bytes):
            return
        if isinstance(key, int) and 0 <= key < PLAIN_KEY:
            return
        self.chosen += 1
        if self.chosen > MOST_CHOSEN_KEYS:
            raise Bad(f"more than {MOST_CHOSEN_KEYS:,} of its keys are no text and no small number")
        if _values(key) > MOST_VALUES_OF_A_KEY:
            raise Bad(f"a key in it consists of more than {MOST_VALUES_OF_A_KEY} values")


def _values(key: Any) -> int:
    """Count the values that hashing a key visits, up to a few more than are allowed."""
    waiting, count = [key], 0
    while waiting and count <= MOST_VALUES_OF_A_KEY:
        value = waiting.pop()
        count += 1
        if isinstance(value, tuple) and not isinstance(value, Name):
            waiting += value[: MOST_VALUES_OF_A_KEY + 1]
        elif isinstance(value, Made):
            waiting.append(value.arguments)
        elif isinstance(value, Reference):
            waiting.append(value.to)
    return count


def _require_no_method(state: Any) -> None:
    """Refuse attributes that would stand before a method of the tensor or dict that gets them."""
    for part in state if isinstance(state, tuple) else (state,):
        for key, _ in part.pairs if isinstance(part, Table) else ():
            for kind in (Tensor, OrderedDict):
                if isinstance(key, str) and callable(getattr(kind, key, None)):
                    raise Bad(f"it replaces the method {shown(key, 40)} of a {kind.__name__}")


def _require_text(name: str, given: tuple[Any, ...]) -> None:
    text, *codec = given or ("",)
    if not isinstance(text, str | bytes | Made) or any(c not in CODECS for c in codec):
        raise Bad(f"it calls {name} for something else than text")
