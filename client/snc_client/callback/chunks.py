"""Groups of tensors that are processed together, so that temporaries stay small."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

CHUNK = 2**24  # numbers in one group: bounds the memory of temporaries

T = TypeVar("T")


def chunks(items: Iterable[T], numel: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield ``items`` in order, in groups of at most `CHUNK` numbers or of one larger item.

    ``numel`` returns how many numbers an item holds.
    """
    chunk: list[T] = []
    size = 0
    for item in items:
        if chunk and size + numel(item) > CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += numel(item)
    if chunk:
        yield chunk
