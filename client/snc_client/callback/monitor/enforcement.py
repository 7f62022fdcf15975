"""Enforcement: writes the weights of layers whose bound is above their threshold."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from snc_client.callback.model.master_weights import Masters, cast_down, lowered
from snc_client.constraint import CLIPS, rescale_
from snc_client.devices import reading_is_free, to_device
from snc_client.layers import Layer


class Enforcement:
    """Rescales and clips the ``layers`` of one device, or their masters, without leaving it."""

    def __init__(self, layers: Sequence[Layer], masters: Masters) -> None:
        self._layers = tuple(layers)
        self._masters = masters

    def act(
        self, held: Sequence[int], capped: Collection[int], bound: Tensor, threshold: Tensor
    ) -> Tensor:
        """Hold layers under their thresholds; return the factor of each largest singular value.

        ``bound`` and ``threshold`` are float32 [L]. The ``capped`` layers are clipped, the others
        rescaled: that costs little below the threshold, and still holds after a sudden rise.
        """
        if reading_is_free(bound.device):
            # Writing a weight costs a quarter of a measurement: skip those below the threshold.
            breached = (bound > threshold).tolist()
            held = [i for i in held if breached[i]]
        factors = {i: self._layers[i].factors() for i in held}
        pairs = {i: pair for i, pair in factors.items() if len(pair) > 1}
        together = {i: self._act_on_pair(i, pair, bound, threshold) for i, pair in pairs.items()}
        held = [i for i in held if i not in pairs]
        stored = {i: factors[i][0] for i in held}
        found = {i: self._masters.of(self._layers[i]) for i in held}
        masters = {i: master for i, master in found.items() if master is not None}
        bound, threshold = lowered(bound, threshold, {i: stored[i].dtype for i in masters})
        written = {**stored, **masters}
        clipped = [i for i in held if i in capped]
        rest = {i: weight for i, weight in written.items() if i not in clipped}
        scale = self._rescale(rest, bound, threshold)
        for i in clipped:
            clip_ = CLIPS[self._layers[i].clip]
            scale[i].copy_(clip_(written[i], bound[i], threshold[i]))
        for i, master in masters.items():
            cast_down(stored[i], master, scale[i])
        for i, both in together.items():
            scale[i].copy_(both)
        return scale

    def _act_on_pair(
        self, i: int, factors: Sequence[Tensor], bound: Tensor, threshold: Tensor
    ) -> Tensor:
        """Multiply each factor of a product by the root of its scale; return the scale, 0-d."""
        both = torch.ones_like(bound[i])
        for factor in factors:
            root, aim = bound[i : i + 1].sqrt(), threshold[i : i + 1].sqrt()
            master = self._masters.of(self._layers[i], factor)
            if master is None:
                both = both * rescale_([factor], root, aim)[0]
                continue
            scale = rescale_([master], *lowered(root, aim, {0: factor.dtype}))[0]
            cast_down(factor, master, scale)
            both = both * scale
        return both

    def _rescale(self, written: Mapping[int, Tensor], bound: Tensor, threshold: Tensor) -> Tensor:
        layers, weights = list(written), list(written.values())
        if not layers:
            return torch.ones_like(bound)
        if len(layers) == len(self._layers):
            return rescale_(weights, bound, threshold)
        places = to_device(layers, bound.device, torch.int64)
        scale = rescale_(weights, bound[places], threshold[places])
        return torch.ones_like(bound).index_copy(0, places, scale)
