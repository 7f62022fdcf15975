"""Checks the arguments of `SNCallback` before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from snc_client.callback.guard.settings import GuardSettings
from snc_client.callback.model.distributed import several_ranks
from snc_client.callback.schedule.measure_schedule import LONGEST
from snc_client.callback.schedule.network_bound import NetworkBound
from snc_client.layers import Logits, grids_of
from snc_client.layers.coverage import ALL_HEADS
from snc_service.wire import Policy


def check_together(optimizers: Sequence[object], masters: object, guard: object) -> None:
    """Raise ValueError for wrong types, and for a guard with masters or several optimizers."""
    if not isinstance(guard, bool | GuardSettings):
        raise ValueError(f"guard must be True, False or GuardSettings, got {guard!r}")
    if guard and masters:
        raise ValueError("masters must be None with guard, got some: it judges the model's own")
    for each in optimizers:
        if not isinstance(each, torch.optim.Optimizer):
            raise ValueError(
                f"optimizer must be a torch.optim.Optimizer, got {type(each).__name__}: leave "
                "it out and call step() after its step"
            )
    if guard and len(optimizers) > 1:
        raise ValueError("optimizer must be a single one with guard: a step is undone as a whole")


def declared(profile: object) -> dict[str, float]:
    """Return the scalars that say what kind of training it is; raise ValueError if unknown."""
    if profile not in (None, "moving_target"):
        raise ValueError(f"profile must be 'moving_target' or None, got {profile!r}")
    return {} if profile is None else {"moving_target": 1.0}


def example(
    model: nn.Module | Mapping[str, nn.Module],
    conv: str,
    grids: Mapping[str, Sequence[int]] | None,
    example_input: Any,
    signals: Sequence[str],
) -> tuple[Mapping[str, Sequence[int]] | None, NetworkBound]:
    """Return the sizes that convolutions meet in a forward pass, and the bound of the networks.

    For {prefix: module}, ``example_input`` is {prefix: input} of some of them. Raises ValueError
    where it is missing or does not fit.
    """
    wanted = "lipschitz" in signals
    if example_input is None:
        if wanted:
            raise ValueError("example_input must be an input of the model for the signal lipschitz")
        return grids, NetworkBound({})
    models = model if isinstance(model, Mapping) else {"": model}
    inputs = example_input if isinstance(model, Mapping) else {"": example_input}
    if not isinstance(inputs, Mapping) or not set(inputs) <= set(models):
        raise ValueError(f"example_input must map prefixes among {', '.join(models)} to inputs")
    if conv == "operator":
        for prefix, given in inputs.items():
            met = grids_of(models[prefix], given)
            named = {f"{prefix}.{name}" if prefix else name: x for name, x in met.items()}
            grids = {**named, **(grids or {})}
    names = {prefix: f"lipschitz_{prefix}" if prefix else "lipschitz" for prefix in inputs}
    bounds = {names[prefix]: (models[prefix], given) for prefix, given in inputs.items()}
    return grids, NetworkBound(bounds if wanted else {})


def with_logits(logits: Logits | None, policy: Policy) -> Logits | None:
    """Return ``"auto"`` where nobody chose attentions, and the policy names logits."""
    named = any(entry.pattern.endswith(ALL_HEADS) for entry in policy.entries)
    return "auto" if logits is None and named else logits


def check_counts(**counts: int | None) -> None:
    """Raise ValueError for a number of steps that is neither None nor an integer above 0."""
    for what, value in counts.items():
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise ValueError(f"{what} must be an integer of at least 1, got {value!r}")


def check_cost(
    every: int, idle_every: int | None, max_overhead: float | None, guard: object
) -> None:
    """Raise ValueError for settings that are out of range or contradict each other."""
    if idle_every is not None and idle_every > LONGEST:
        raise ValueError(f"idle_every must be at most {LONGEST}, got {idle_every}: use every")
    if guard and (every != 1 or max_overhead is not None or idle_every not in (None, 1)):
        raise ValueError(
            f"every and idle_every must be 1 and max_overhead None with guard, got {every}, "
            f"{idle_every} and {max_overhead}: it judges every step by every layer"
        )
    if max_overhead is not None and not 0 < max_overhead < 1:
        raise ValueError(f"max_overhead must be a share of step time in (0, 1), got {max_overhead}")
    if max_overhead is not None and several_ranks():
        raise ValueError("max_overhead must be None in a job of several ranks: clocks differ")
