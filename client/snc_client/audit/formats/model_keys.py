"""Where trainers put the model in a checkpoint, beside the optimizer and the rest."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

# Keys under which trainers store the model, tried in this order.
MODEL_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "network",
    "net",
    "weights",
    "params",
)
MAX_NESTING = 16


def is_optimizer(key: str) -> bool:
    """Return whether a key of a checkpoint leads to an optimizer."""
    return key.startswith("optim")


def model_of(
    paths: Mapping[str, tuple[str, ...]], tensors: Collection[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Return the entries of the model with their names in it, and the names of what is left out.

    ``paths`` leads from each entry of a flattened checkpoint to the keys that were nested.
    """
    left_out: list[str] = []
    depth, inside = 0, dict(paths)
    for depth in range(MAX_NESTING):
        if any(len(path) == depth + 1 for name, path in inside.items() if name in tensors):
            break
        keys = dict.fromkeys(path[depth] for path in inside.values() if len(path) > depth)
        nested = {path[depth] for path in inside.values() if len(path) > depth + 1}
        key = next((key for key in MODEL_KEYS if key in nested), None)
        if key is None:
            break
        left_out += [other for other in keys if other != key]
        inside = {k: path for k, path in inside.items() if path[depth : depth + 1] == (key,)}
    found: dict[str, str] = {}
    for name, path in inside.items():
        rest = path[depth:]
        cut = _optimizer(rest)
        if cut is None:
            found[name] = ".".join(rest)
        else:
            left_out.append(".".join(rest[: cut + 1]))
    return found, tuple(dict.fromkeys(left_out))


def _optimizer(path: Iterable[str]) -> int | None:
    return next((at for at, key in enumerate(path) if is_optimizer(key)), None)
