"""Read a pickle as inert data: no name in it is looked up, nothing is called, the work is bounded.

A pickle is a program for a stack machine. This machine runs the steps that only build data, and
writes down what the others would have called. It reads what torch writes: protocols 2 to 5.
"""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from snc_client.audit.formats.stored import Unreadable, clean

# Beyond what a training writes: 200,000 tensors take 9 million steps.
MOST_STEPS = 16_000_000


class Bad(Unreadable):
    """The bytes are no pickle, or one that would take too long."""


class Name(NamedTuple):
    """A function or class that the pickle names."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Made:
    """What a call would have returned; ``state`` and ``pairs`` are what it would have got."""

    function: Any
    arguments: Any
    state: Any = None
    pairs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Table:
    """A dict, as pairs: keys of a hostile pickle may take for ever to hash."""

    pairs: list[tuple[Any, Any]]


@dataclass(slots=True, eq=False)
class Reference:
    """A value outside the pickle: for torch, a storage."""

    to: Any


Step: TypeAlias = Callable[["_Machine"], None]


def inert(
    raw: bytes,
    start: int = 0,
    *,
    most: int = MOST_STEPS,
    names: Callable[[Name], None] = lambda name: None,
    watch: Callable[[Any], None] = lambda value: None,
) -> tuple[Any, int]:
    """Return the value of the pickle at ``raw[start:]``, and where it ends.

    Values are None, bool, int, float, str, bytes, list, tuple, `Name`, `Made`, `Table`,
    `Reference`; a list or a table may contain itself. ``names`` sees each name, ``watch`` each
    `Made` when it is called and when it gets a state, and each pair of a mapping; both may raise.
    Raises `Bad`, after ``most`` steps at the latest: 16 million take some 5 s and up to 2 GB.
    """
    machine = _Machine(raw, start, names, watch)
    with _uncollected():
        try:
            for _ in range(most):
                code = raw[machine.at]
                machine.at += 1
                if code == _STOP:
                    return machine.pop(), machine.at
                _STEPS[code](machine)
        except (KeyError, IndexError, ValueError, struct.error) as error:
            why = "an unknown step" if isinstance(error, KeyError) else clean(str(error))
            raise Bad(f"it breaks off or has no sense at byte {machine.at} ({why})") from None
    raise Bad(f"it takes more than {most:,} steps")


@contextmanager
def _uncollected() -> Iterator[None]:
    """Switch the cycle collector off: it would walk millions of new values again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Machine:
    def __init__(
        self,
        raw: bytes,
        start: int,
        names: Callable[[Name], None],
        watch: Callable[[Any], None],
    ) -> None:
        self.raw, self.at = raw, start
        self.names, self.watch = names, watch
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def pop(self) -> Any:
        return self.stack.pop()

    def take(self, count: int) -> bytes:
        at = self.at
        if count > len(self.raw) - at:
            raise ValueError("the end is missing")
        self.at = at + count
        return self.raw[at : self.at]

    def number(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self.raw, self.at)
        self.at += form.size
        return value

    def line(self) -> str:
        end = self.raw.index(b"\n", self.at, self.at + 1_000)
        text = self.raw[self.at : end].decode("utf-8")
        self.at = end + 1
        return text

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []


U8, U16, I32 = struct.Struct("<B"), struct.Struct("<H"), struct.Struct("<i")
U32, U64, F64 = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct(">d")
_STOP = ord(".")


def _constant(value: Any) -> Step:
    return lambda m: m.stack.append(value)


def _plain(form: struct.Struct) -> Step:
    return lambda m: m.stack.append(m.number(form))


def _text(form: struct.Struct) -> Step:
    return lambda m: m.stack.append(m.take(m.number(form)).decode("utf-8", "surrogatepass"))


def _bytes(form: struct.Struct) -> Step:
    return lambda m: m.stack.append(m.take(m.number(form)))


def _integer(form: struct.Struct) -> Step:
    def step(m: _Machine) -> None:
        size = m.number(form)
        if size > 255:  # torch takes no longer ones, and its arithmetic would be slow
            raise ValueError("an integer of more than 255 bytes")
        m.stack.append(int.from_bytes(m.take(size), "little", signed=True))

    return step


def _tuple(count: int) -> Step:
    def step(m: _Machine) -> None:
        if len(m.stack) < count:
            raise IndexError("too few values for a tuple")
        m.stack[-count:] = [tuple(m.stack[-count:])]

    return step


def _marked_tuple(m: _Machine) -> None:
    items = tuple(m.since_mark())  # the stack is another one after it
    m.stack.append(items)


def _put(form: struct.Struct) -> Step:
    def step(m: _Machine) -> None:
        m.memo[m.number(form)] = m.stack[-1]

    return step


def _get(form: struct.Struct) -> Step:
    def step(m: _Machine) -> None:
        key = m.number(form)
        if key not in m.memo:
            raise ValueError(f"nothing was kept as {key}")
        m.stack.append(m.memo[key])

    return step


def _skip(form: struct.Struct) -> Step:
    return lambda m: m.number(form) and None


def _drop(m: _Machine) -> None:
    m.pop()


def _memoize(m: _Machine) -> None:
    m.memo[len(m.memo)] = m.stack[-1]


def _named(m: _Machine, module: Any, name: Any) -> None:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError("a name must be text")
    found = Name(module, name)
    m.names(found)
    m.stack.append(found)


def _global(m: _Machine) -> None:
    _named(m, m.line(), m.line())


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    _named(m, module, name)


def _call(m: _Machine) -> None:
    arguments, function = m.pop(), m.pop()
    made = Made(function, arguments)
    m.watch(made)
    m.stack.append(made)


def _build(m: _Machine) -> None:
    state, made = m.pop(), m.stack[-1]
    if not isinstance(made, Made):
        raise ValueError("only what a call returns has a state")
    made.state = state
    m.watch(made)


def _persistent(m: _Machine) -> None:
    m.stack.append(Reference(m.pop()))


def _append(m: _Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if not isinstance(target, list):
        raise ValueError("only a list takes items")
    target += items


def _set(m: _Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    if len(items) % 2:
        raise ValueError("a key without a value")
    pairs = list(zip(items[::2], items[1::2], strict=True))
    for pair in pairs:
        m.watch(pair)
    if not isinstance(target, Table | Made):
        raise ValueError("only a mapping takes pairs")
    target.pairs += pairs


def _set_one(m: _Machine) -> None:
    value, key = m.pop(), m.pop()
    _set(m, [key, value])


_NAMED_STEPS: dict[bytes, Step] = {
    b"\x80": _skip(U8),
    b"\x95": _skip(U64),  # a frame: only a hint for readers of streams
    b"(": _Machine.mark,
    b"0": _drop,
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"J": _plain(I32),
    b"K": _plain(U8),
    b"M": _plain(U16),
    b"G": _plain(F64),
    b"\x8a": _integer(U8),
    b"\x8b": _integer(U32),
    b"X": _text(U32),
    b"\x8c": _text(U8),
    b"\x8d": _text(U64),
    b"U": _bytes(U8),
    b"T": _bytes(U32),
    b"C": _bytes(U8),
    b"B": _bytes(U32),
    b"\x8e": _bytes(U64),
    b"]": lambda m: m.stack.append([]),
    b"}": lambda m: m.stack.append(Table([])),
    b"\x8f": lambda m: m.stack.append(Made(Name("builtins", "set"), ())),
    b")": _constant(()),
    b"\x85": _tuple(1),
    b"\x86": _tuple(2),
    b"\x87": _tuple(3),
    b"t": _marked_tuple,
    b"a": lambda m: _append(m, [m.pop()]),
    b"e": lambda m: _append(m, m.since_mark()),
    b"s": _set_one,
    b"u": lambda m: _set(m, m.since_mark()),
    b"q": _put(U8),
    b"r": _put(U32),
    b"\x94": _memoize,
    b"h": _get(U8),
    b"j": _get(U32),
    b"c": _global,
    b"\x93": _stack_global,
    b"R": _call,
    b"\x81": _call,
    b"b": _build,
    b"Q": _persistent,
}
_STEPS = {code[0]: step for code, step in _NAMED_STEPS.items()}
