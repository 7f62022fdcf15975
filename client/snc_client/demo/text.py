"""Real data that every machine has: the source text of Python's own standard library."""

from __future__ import annotations

import string
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

ALPHABET = string.printable[:95] + "\n"  # letters, digits, punctuation, space; one line end
UNKNOWN = len(ALPHABET)
VOCABULARY = len(ALPHABET) + 1


def standard_library_text(max_chars: int = 1_500_000) -> str:
    """Return the top-level modules' source in alphabetical order, cut to ``max_chars``."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts: list[str] = []
    length = 0
    for path in sorted(folder.glob("*.py")):
        parts.append(path.read_text(encoding="utf-8", errors="replace"))
        length += len(parts[-1])
        if length >= max_chars:
            break
    if not parts:
        raise FileNotFoundError(f"no Python source found in {folder}: the demo trains on it")
    return "".join(parts)[:max_chars]


def encode(text: str) -> Tensor:
    """Return int64 [len(text)]: each character's index, UNKNOWN if it is not in the alphabet."""
    index = {char: i for i, char in enumerate(ALPHABET)}
    return torch.tensor([index.get(char, UNKNOWN) for char in text])


def minibatches(
    tokens: Tensor, *, batch_size: int, context: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (inputs, next characters), both [batch_size, context], for ever, drawn by ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(context + 1)
    while True:
        starts = torch.randint(len(tokens) - context - 1, (batch_size, 1), generator=generator)
        window = tokens[starts + offsets]
        yield window[:, :-1], window[:, 1:]
