"""The layers of one device: measured, certified, compared and acted on without leaving it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from snc_client.bounds import bound, certifiable
from snc_client.callback.model.master_weights import Masters, cast_down, lowered
from snc_client.callback.monitor.carried_bounds import CarriedBounds, SteppedBounds
from snc_client.callback.monitor.thresholds import Thresholds
from snc_client.constraint import CLIPS, rescale_
from snc_client.devices import reading_is_free, to_device
from snc_client.estimator import LAG, warm_blocks
from snc_client.layers import Layer
from snc_client.operators import Gain, Operator, Rows
from snc_client.policy import LayerPolicy

# sigma is an estimate from below. The first margin covers its largest error beside an active
# threshold (9e-4 over 1440 layer-steps). An abrupt step leaves the warm block behind by up to 3 %,
# and (residual / sigma)^2 says by about how much: within 5e-4 over the first steps of AdamW and
# Muon-like training. Beyond the second, nothing is known, and a rescale is not undone.
MARGIN, MOST_MARGIN = 1e-3, 0.1
# The reference outlives the run's start, so it is worth more than one call's iterations.
REGISTER_CALLS = 8
# One iteration follows a weight that is measured at each call; after ten calls it may err by 1 %.
# That does for a layer far from a threshold, but a certificate would miss its first rungs and fall
# back on its dearest: so it gets one more for every four calls that the layer was left out of.
CATCH_UP_CALLS, MOST_CATCHING_UP = 4, 3
# A certificate above this multiple of sigma took its last resort: the warm block has lost the top
# singular direction.
REFILL_RATIO = 1.011
# Between its turns a weight moves by several steps, and one layer in seven lags. A call costs as
# much for one layer as for eight, so it is measured again with the next turn, unless it is far off:
# sigma errs by up to 7e-3 meanwhile, and nothing is divided by it.
IDLE_LAG, FAR_OFF = 0.03, 0.06


class Stepped(NamedTuple):
    """What a step gave: [M, l] for the layers measured, and which layers were certified."""

    rows: Tensor
    certified: Collection[int]


class DeviceGroup:
    """L layers on one device, and what lives between their measurements.

    ``indices`` are the layers' places among all layers of the model. Every vector is float32 [L]
    on the device; which layers are certified or capped at a step is decided by the host before.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        indices: Sequence[int],
        device: torch.device,
        *,
        block: int,
        masters: Masters,
        strict: bool = False,
        stepped: bool = False,
    ) -> None:
        self.layers = tuple(layers)
        self.indices = list(indices)
        self.device = device
        shapes = [layer.operator().shape for layer in layers]
        self.power = warm_blocks(shapes, device=device, block=block)
        self.thresholds = Thresholds([rms(layer) for layer in layers], device)
        self._masters = masters
        self._carried = CarriedBounds(len(layers), device) if strict else None
        self._stepped = SteppedBounds(shapes, device) if stepped else None
        self._held: tuple[int, ...] = ()
        self._capped: tuple[int, ...] = ()
        self._calls = 0
        self._met = [0] * len(layers)  # the call that measured each layer last

    def set_policy(self, policies: Sequence[LayerPolicy]) -> None:
        """Put thresholds and actions in force, one per layer of the group."""
        self.thresholds.set([p.factor for p in policies], [p.unit for p in policies])
        self._held = tuple(i for i, p in enumerate(policies) if p.action in ("rescale", "cap"))
        self._capped = tuple(i for i, p in enumerate(policies) if p.action == "cap")

    def register(self, *, certify: bool = True) -> Stepped:
        """Return a first measurement: sigma, residual and a bound; it acts on nothing.

        Certified at once, so that no layer waits for its turn to have a bound to start from.
        """
        operators = {i: layer.operator() for i, layer in enumerate(self.layers)}
        for _ in range(REGISTER_CALLS):
            estimates = self.power.step_(list(operators.values()))
        self.thresholds.register(estimates.sigma)
        nan, inf = (torch.full_like(estimates.sigma, x) for x in (math.nan, math.inf))
        upper = nan.clone()
        proven = [i for i, x in operators.items() if certify and certifiable(x)]
        self._certify(operators, proven, estimates.sigma, upper)
        if self._stepped is not None:
            self._stepped.acted(upper, torch.ones_like(upper))
        return Stepped(torch.stack([estimates.sigma, inf, nan, estimates.residual, upper]), proven)

    def step(
        self,
        measured: Sequence[int],
        *,
        certify: Collection[int],
        cap: Collection[int],
        pressing: Collection[int] = (),
        idle: Collection[int] = (),
        drift: Mapping[int, Tensor] | None = None,
    ) -> Stepped:
        """Measure these layers, certify and cap some of them, act; return [M, len(measured)].

        The rows are those of `METRICS`. The other layers are among ``measured``. ``pressing`` are
        those whose carried bound may pass the threshold at this step, as far as the host can know.
        ``idle`` are far from their thresholds and not measured at every step: near is good enough.
        ``drift`` is the norm of the last step of those that nothing else has moved: nothing is
        divided by a bound that it carries.
        """
        operators = {i: self.layers[i].operator() for i in measured}
        # The norm of these is read off, so its bound costs nothing.
        certify = {*certify, *(i for i, x in operators.items() if isinstance(x, Gain | Rows))}
        self._catch_up(operators, certify)
        lag = [FAR_OFF if i in idle else LAG for i in measured]
        estimates = self.power.step_(list(operators.values()), measured, lag=lag)
        sigma, residual = (self._all(measured, x) for x in (estimates.sigma, estimates.residual))
        self.thresholds.register(sigma)
        upper = torch.full_like(sigma, math.nan)
        self._certify(operators, certify, sigma, upper)
        if self._carried is not None:
            certify = {*certify, *self._prove(operators, certify, pressing, sigma, upper)}
        divisor = torch.where(upper.isfinite(), upper, presumed(sigma, residual))
        if self._stepped is not None:
            upper = self._stepped.filled(upper, sigma, drift or {})
        scale = self._act([i for i in self._held if i in operators], divisor, cap)
        if self._stepped is not None:
            self._stepped.acted(upper, scale, [i for i in self._capped if i in cap])
        rows = torch.stack([sigma, self.thresholds.value, scale, residual, upper])
        if len(measured) != len(self.layers):
            rows = rows[:, to_device(measured, self.device, torch.int64)]
        return Stepped(rows, certify)

    def _certify(
        self,
        operators: Mapping[int, Operator],
        certify: Collection[int],
        sigma: Tensor,
        upper: Tensor,
    ) -> None:
        for i in certify:
            upper[i].copy_(bound(operators[i], sigma[i]))
            if self._carried is not None and i in self._held:
                self._carried.certified(i, operators[i], upper[i])
        if certify:
            self._refill(list(certify), upper > REFILL_RATIO * sigma)

    def _refill(self, certified: Sequence[int], lost: Tensor) -> None:
        """Draw anew the warm blocks that have lost the top direction: the certificate says so.

        Here and now, on the device: ranks that did it when their hosts learn of it would differ.
        """
        if not reading_is_free(self.device) or any(lost.tolist()):
            self.power.refill_(lost[to_device(certified, self.device, torch.int64)], certified)

    def _prove(
        self,
        operators: Mapping[int, Operator],
        certified: Collection[int],
        pressing: Collection[int],
        sigma: Tensor,
        upper: Tensor,
    ) -> list[int]:
        """Give ``upper`` a bound for every held layer; return which were certified for that.

        Where the carried bound proves that the threshold holds, a certificate would say no more.
        The host knows that at once where reading is free, else it has guessed (``pressing``). A
        guess that fails costs no proof: the carried bound is divided by then, which shrinks more.
        """
        assert self._carried is not None
        rest = [i for i in self._held if i in operators and i not in certified]
        carried = self._carried.bounds({i: operators[i] for i in rest})
        if reading_is_free(self.device):
            proven = (carried <= self.thresholds.value).tolist()
            late = [i for i in rest if not proven[i]]
        else:
            late = [i for i in rest if i in pressing]
        upper.copy_(torch.where(upper.isnan(), carried, upper))
        self._certify(operators, late, sigma, upper)
        return late

    def _catch_up(self, operators: Mapping[int, Operator], certify: Collection[int]) -> None:
        """Iterate more where a weight to certify has moved for several calls unmeasured."""
        self._calls += 1
        gaps = {i: self._calls - self._met[i] for i in certify}
        for again in range(1, MOST_CATCHING_UP + 1):
            stale = [i for i, gap in gaps.items() if gap >= again * CATCH_UP_CALLS]
            if stale:
                self.power.step_([operators[i] for i in stale], stale)
        for i in operators:
            self._met[i] = self._calls

    def _all(self, places: Sequence[int], values: Tensor) -> Tensor:
        """Return ``values`` of some layers as a vector of all, NaN for the others."""
        if len(places) == len(self.layers):
            return values
        nan = torch.full_like(self.thresholds.value, math.nan)
        return nan.index_copy(0, to_device(places, self.device, torch.int64), values)

    def state(self) -> list[dict[str, Any]]:
        """Return what is warm of each layer, on the device."""
        state = self.power.state_dict()
        columns = zip(self.thresholds.reference, state["blocks"], state["steps"], strict=True)
        return [{"reference": r, "block": v, "iterations": n} for r, v, n in columns]

    def load(self, states: Sequence[Mapping[str, Any] | None]) -> None:
        """Continue from ``states``, one per layer; None and blocks of another length start cold.

        Where the number of vectors differs, the best ones are kept and the others are fresh.
        """
        ours = self.power.state_dict()
        reference = list(self.thresholds.reference.unbind())
        for k, state in enumerate(states):
            if state is None:
                continue
            reference[k] = state["reference"].to(reference[k])
            block, theirs = ours["blocks"][k], state["block"]
            if block.shape[1:] == theirs.shape[1:]:
                block[: len(theirs)] = theirs[: len(block)]
                ours["steps"][k] = int(state["iterations"])
        self.power.load_state_dict(ours)
        self._settle([k for k, state in enumerate(states) if state is None])
        self.thresholds.restore(torch.stack(reference))

    def _settle(self, cold: Sequence[int]) -> None:
        """Iterate until the sigma of these layers may be their reference, as `register` does."""
        if cold:
            operators = [self.layers[i].operator() for i in cold]
            for _ in range(REGISTER_CALLS):
                self.power.step_(operators, cold)

    def _act(self, held: Sequence[int], bound: Tensor, cap: Collection[int]) -> Tensor:
        """Hold layers under their thresholds; return the factor of each largest singular value.

        A layer to be capped that is not near its threshold is rescaled instead: this costs little
        where there is nothing to do, and holds it if sigma leapt there within one step.
        """
        threshold = self.thresholds.value
        if reading_is_free(self.device):
            # A weight that is not written is time saved: a quarter of what a measurement costs.
            breached = (bound > threshold).tolist()
            held = [i for i in held if breached[i]]
        factors = {i: self.layers[i].factors() for i in held}
        pairs = {i: pair for i, pair in factors.items() if len(pair) > 1}
        together = {i: self._act_on_pair(i, pair, bound, threshold) for i, pair in pairs.items()}
        held = [i for i in held if i not in pairs]
        stored = {i: factors[i][0] for i in held}
        found = {i: self._masters.of(self.layers[i]) for i in held}
        masters = {i: master for i, master in found.items() if master is not None}
        bound, threshold = lowered(bound, threshold, {i: stored[i].dtype for i in masters})
        written = {**stored, **masters}
        capped = [i for i in held if i in self._capped and i in cap]
        rest = {i: weight for i, weight in written.items() if i not in capped}
        scale = self._rescale(rest, bound, threshold)
        for i in capped:
            clip_ = CLIPS[self.layers[i].clip]
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
            master = self._masters.of(self.layers[i], factor)
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
        if len(layers) == len(self.layers):
            return rescale_(weights, bound, threshold)
        places = to_device(layers, self.device, torch.int64)
        scale = rescale_(weights, bound[places], threshold[places])
        return torch.ones_like(bound).index_copy(0, places, scale)


def presumed(sigma: Tensor, residual: Tensor) -> Tensor:
    """Return what to divide by where there is no certificate: sigma with a margin. No bound."""
    return sigma * (1.0 + (residual / sigma).square().clamp(MARGIN, MOST_MARGIN))


def rms(layer: Layer) -> float:
    """Return sqrt(fan_out / fan_in), the sigma that keeps the root mean square of activations."""
    return math.sqrt(layer.fan_out / layer.fan_in)
