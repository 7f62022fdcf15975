"""Scalars of a step: numbers stay on the host, tensors are copied with their device's row."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from snc_service.wire import METRIC_NAME

log = logging.getLogger("snc")


class Scalars:
    """Sorts scalars by their location: the host or a device.

    A value that is not a scalar is left out and logged once: a wrong argument must neither end the
    training nor prevent a layer from being held.
    """

    def __init__(self) -> None:
        self._refused: set[str] = set()

    def sort(
        self, scalars: Mapping[str, Any]
    ) -> tuple[dict[str, float], dict[torch.device, dict[str, Tensor]]]:
        """Return the numbers, and the tensors (float32 [1]) by device."""
        numbers: dict[str, float] = {}
        tensors: dict[torch.device, dict[str, Tensor]] = {}
        for name, value in scalars.items():
            if not METRIC_NAME.fullmatch(name):
                self._refuse(name, "a name of [a-z0-9_] that starts with a letter")
            elif isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
                flat = value.detach().reshape(1).to(torch.float32)
                tensors.setdefault(value.device, {})[name] = flat
            elif isinstance(value, Real):
                numbers[name] = float(value)
            elif value is not None:
                self._refuse(name, "a number or a tensor with one element")
        return numbers, tensors

    def _refuse(self, name: str, expected: str) -> None:
        if name not in self._refused:
            self._refused.add(name)
            log.warning("scalar %r must be %s: it is not reported", name, expected)
