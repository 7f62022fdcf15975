"""DeviceGroup: measures, certifies and holds the layers of one device on that device."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from snc_client.bounds import bound, certifiable, last_bound
from snc_client.callback.model.master_weights import Masters
from snc_client.callback.monitor.carried_bounds import CarriedBounds, SteppedBounds
from snc_client.callback.monitor.enforcement import Enforcement, WarmCaps, lagging, presumed
from snc_client.callback.monitor.outside_energy import SUDDEN, OutsideEnergy
from snc_client.callback.monitor.step_plan import StepPlan, indices
from snc_client.callback.monitor.thresholds import Thresholds
from snc_client.callback.readback.device_row import DeviceRow
from snc_client.devices import reading_is_free, to_device
from snc_client.estimator import LAG, Estimates, warm_blocks
from snc_client.estimator.frobenius import norms
from snc_client.layer_row import Mask
from snc_client.layers import Layer
from snc_client.operators import BlockDiagonal, Gain, LowRank, Matrix, Operator, Rows
from snc_client.policy import HOLDING, LayerPolicy
from snc_client.precision import finite

# The first sigma is the reference for the run, so it gets 40 iterations or more, as of shards: 16
# in the first call, and in the others 4 where the host must not read the residual, elsewhere 1.
REGISTER_CALLS, REGISTER_CALLS_UNREAD = 25, 8
# One iteration suffices for a weight that is measured at each call. After ten calls without, sigma
# may err by 1 %. A certificate would then fail at its first two bounds and take its most expensive
# one: the layer gets one more iteration for every four calls without a measurement.
CATCH_UP_CALLS, MOST_CATCHING_UP = 4, 3
# A certificate above this multiple of sigma took its last resort: the warm block has lost the top
# singular direction.
REFILL_RATIO = 1.011
# A weight moves by several steps between two turns, and the block of one layer in seven lags. A
# call costs as much for one layer as for eight, so a lagging layer waits for the next turn, unless
# its residual is above FAR_OFF. Until then sigma errs by up to 7e-3, and nothing is divided by it.
IDLE_LAG, FAR_OFF = 0.03, 0.06
# A leap in a new direction is found by a refilled block, in 4 to 16 iterations.
SUDDEN_CALLS = 4


class DeviceGroup:
    """L layers on one device, with the state that is kept between their measurements.

    ``indices`` are those of the layers among all layers of the model. Every vector is float32 [L]
    on the device. A `StepPlan`, made on the host, selects the layers of each operation of a step.
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
        operators = [layer.operator() for layer in layers]
        shapes = [operator.shape for operator in operators]
        self._certifiable = [strict or certifiable(operator) for operator in operators]
        self.power = warm_blocks(shapes, device=device, block=block)
        self.thresholds = Thresholds([rms(layer) for layer in layers], device)
        self._enforcement = Enforcement(self.layers, masters)
        self._strict = strict
        self._carried = CarriedBounds(len(layers), device)
        self._caps = WarmCaps(self.layers, self._enforcement, self._carried, strict=strict)
        self._stepped = SteppedBounds(shapes, device) if stepped else None
        self._outside = OutsideEnergy(len(layers), device)
        watched = [isinstance(x, Matrix | BlockDiagonal | LowRank) for x in operators]
        self._watched = to_device([1.0 if x else math.nan for x in watched], device, torch.float32)
        self._held: tuple[int, ...] = ()
        self._capped: tuple[int, ...] = ()
        self._normalized: frozenset[int] = frozenset()
        self._calls = 0
        self._met = [0] * len(layers)  # the last call that measured each layer

    def set_policy(self, policies: Sequence[LayerPolicy]) -> None:
        """Put thresholds and actions in force, one per layer of the group."""
        self.thresholds.set([p.factor for p in policies], [p.unit for p in policies])
        self._held = tuple(i for i, p in enumerate(policies) if p.action in HOLDING)
        self._capped = tuple(i for i, p in enumerate(policies) if p.action == "cap")
        self._normalized = frozenset(i for i, p in enumerate(policies) if p.action == "normalize")
        # Elsewhere the host must not read what a certificate says.
        free = reading_is_free(self.device)
        self._caps.set([i for i in self._capped if free and self._certifiable[i]])

    def register(self, *, certify: bool = True) -> DeviceRow:
        """Return a first measurement: sigma, residual and, with ``certify``, a bound of each layer.

        It writes no weight. With ``certify`` every layer has a bound to carry from the start.
        """
        operators = {i: layer.operator() for i, layer in enumerate(self.layers)}
        estimates = self._settle(list(operators))
        size = self._sizes(operators, operators)
        share = self._outside.share(estimates.sigma, estimates.captured, size)
        self._outside.note(estimates.sigma, share)
        self.thresholds.register(estimates.sigma)
        nan, inf = (torch.full_like(estimates.sigma, x) for x in (math.nan, math.inf))
        upper = nan.clone()
        proven = [i for i in operators if certify and self._certifiable[i]]
        self._certify(operators, proven, estimates.sigma, upper)
        if self._stepped is not None:
            self._stepped.acted(upper, torch.ones_like(upper))
        return DeviceRow(
            device=self.device,
            layers=self.indices,
            certified=[self.indices[i] for i in proven],
            sigma=estimates.sigma,
            threshold=inf,
            scale=nan,
            residual=estimates.residual,
            sigma_upper=upper,
        )

    def step(
        self, plan: StepPlan, step_norms: Mapping[int, Tensor], frobenius: Tensor | None = None
    ) -> DeviceRow:
        """Measure, certify and act as ``plan`` says; return the row of the layers measured.

        ``step_norms`` holds the Frobenius norm (0-d) of the optimizer's last step, for layers that
        nothing else has written since. A bound carried by it is reported; no weight is divided
        by it. ``frobenius`` has the norms of the layers measured; if None, those of held layers
        are computed here.
        """
        measured, cap = indices(plan.measured), set(indices(plan.capped))
        pressing, idle = set(indices(plan.pressing)), set(indices(plan.idle))
        operators = {i: self.layers[i].operator() for i in measured}
        # The exact norm of a gain or a table is read off its weight: a bound at no cost.
        exact = (i for i, x in operators.items() if isinstance(x, Gain | Rows))
        certify = {*indices(plan.certified), *exact}
        self._catch_up(operators, certify)
        lag = [FAR_OFF if i in idle else LAG for i in measured]
        estimates = self.power.step_(list(operators.values()), measured, lag=lag)
        every = len(measured) == len(self.layers)
        at = None if every else to_device(measured, self.device, torch.int64)
        sizes = [] if frobenius is None else [frobenius]
        sigma, residual, captured, *sizes = self._spread(at, [*estimates.columns, *sizes])
        estimates = Estimates(sigma, residual, captured)
        rise, sudden = None, list[int]()
        if sizes or self._held:
            (size,) = sizes or [self._sizes(operators, self._held)]
            estimates, rise, sudden = self._watched_for(operators, estimates, size)
        sigma, residual = estimates.sigma, estimates.residual
        certify.update(i for i in sudden if certifiable(operators[i]))
        self.thresholds.register(sigma)
        certify.update(self._uncertain(operators, sigma, residual))
        upper = torch.full_like(sigma, math.nan)
        self._certify(operators, certify, sigma, upper)
        divisor = upper
        if self._strict:
            certify = {*certify, *self._prove(operators, certify, pressing, sigma, upper)}
        elif self._held:
            divisor = torch.where(finite(upper), upper, presumed(sigma, residual, rise))
        near = [i for i in self._caps.layers if i in operators and plan.written[i]]
        clip = self._caps.choose(near, operators, divisor, upper, self.thresholds.value)
        if self._stepped is not None:
            upper = self._stepped.filled(upper, sigma, step_norms)
        held = [i for i in self._held if plan.written[i] and i not in self._caps.layers]
        capped = [i for i in self._capped if i in cap or i in clip]
        scale = torch.ones_like(sigma)
        if self._held:
            scale = self._enforcement.act(
                held, capped, self._normalized, divisor, self.thresholds.value
            )
            self._caps.act(clip, self.power, self.thresholds.value, scale)
            self._outside.acted(scale, capped)
        if self._stepped is not None:
            self._stepped.acted(upper, scale, capped)
        threshold = self.thresholds.value
        if at is not None:
            columns = torch.stack([sigma, threshold, scale, residual, upper])
            sigma, threshold, scale, residual, upper = columns.index_select(1, at).unbind()
        return DeviceRow(
            device=self.device,
            layers=[self.indices[i] for i in measured],
            certified=[self.indices[i] for i in certify],
            sigma=sigma,
            threshold=threshold,
            scale=scale,
            residual=residual,
            sigma_upper=upper,
        )

    def hurry(self, late: Mask, lost: Mask) -> None:
        """Let the next call iterate more on layers that are ``late``, bool [L] on the host.

        Those that the host has found ``lost`` after a leap start from a refilled block.
        """
        again = indices(late & lost)
        if again and not reading_is_free(self.device):
            self.power.refill_(to_device([True] * len(again), self.device, torch.bool), again)
        self.power.hurry(indices(late))

    def _certify(
        self,
        operators: Mapping[int, Operator],
        certify: Collection[int],
        sigma: Tensor,
        upper: Tensor,
    ) -> None:
        for i in certify:
            # Strict holds a convolution too, by a bound too loose to divide by without need.
            bounded = last_bound if self._strict else bound
            upper[i].copy_(bounded(operators[i], sigma[i]))
        self._start_carrying(operators, certify, upper)
        if certify:
            # The bound of a convolution is loose: it says nothing of the block.
            self._refill(list(certify), (upper > REFILL_RATIO * sigma) & (self._watched == 1))

    def _start_carrying(
        self, operators: Mapping[int, Operator], certified: Collection[int], upper: Tensor
    ) -> None:
        """Keep the certificates from which later bounds of held layers are carried.

        From one above the threshold no useful bound is: a CPU is spared the copy of the weight.
        """
        wanted = [i for i in certified if self._strict and i in self._held]
        wanted += [i for i in certified if i in self._caps.layers and i not in wanted]
        useless = [False] * len(self.layers)
        if wanted and reading_is_free(self.device):
            useless = (finite(upper) & (upper > self.thresholds.value)).tolist()
        for i in wanted:
            if useless[i] and i not in self._caps.layers:
                self._carried.drop(i)
            else:
                self._carried.certified(i, operators[i], upper[i])

    def _refill(self, certified: Sequence[int], lost: Tensor) -> None:
        """Replace the vectors of warm blocks that have lost the top singular direction.

        A certificate far above sigma shows the loss. The device decides, within the step: hosts of
        several ranks read it at different times, and their weights would differ.
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
        """Write a bound of every held layer into ``upper``; return the layers certified for that.

        A carried bound below the threshold proves as much as a certificate. On a CPU the host
        compares the two; elsewhere the plan predicts the result (``pressing``). A wrong prediction
        loses no proof: the weight is divided by the carried bound, which shrinks it more.
        """
        rest = [i for i in self._held if i in operators and i not in certified]
        free = reading_is_free(self.device)
        above = self._carried.above(self.thresholds.value) if free else [False] * len(self.layers)
        worth = [i for i in rest if not above[i] or i in self._caps.layers]
        carried = self._carried.bounds({i: operators[i] for i in worth})
        if free:
            proven, bounded = (
                x.tolist() for x in (carried <= self.thresholds.value, finite(carried))
            )
            # A clip is proven afterwards, but a layer without any bound would not be chosen for it.
            late = [
                i for i in rest if not proven[i] and not (bounded[i] and i in self._caps.layers)
            ]
            # A carried bound is too loose to scale up by.
            late += [i for i in rest if proven[i] and i in self._normalized]
        else:
            must = {*pressing, *self._normalized}
            late = [i for i in rest if i in must or not self._carried.known(i)]
        upper.copy_(torch.where(upper.isnan(), carried, upper))
        self._certify(operators, late, sigma, upper)
        return late

    def _catch_up(self, operators: Mapping[int, Operator], certify: Collection[int]) -> None:
        """Iterate more on layers to be certified that were not measured for several calls."""
        self._calls += 1
        gaps = {i: self._calls - self._met[i] for i in certify}
        for again in range(1, MOST_CATCHING_UP + 1):
            stale = [i for i, gap in gaps.items() if gap >= again * CATCH_UP_CALLS]
            if stale:
                self.power.step_([operators[i] for i in stale], stale)
        for i in operators:
            self._met[i] = self._calls

    def _watched_for(
        self, operators: Mapping[int, Operator], found: Estimates, size: Tensor
    ) -> tuple[Estimates, Tensor | None, list[int]]:
        """Find out which layers have leapt in a direction that their block has not met.

        On a CPU these are measured again at once, with a refilled block; they are returned, to be
        certified. Elsewhere the host may not look: sigma stays, its residual says that it is
        uncertain, and the rise of the energy outside, returned too, is what `presumed` allows for.
        """
        size = size * self._watched
        share = self._outside.share(found.sigma, found.captured, size)
        rise = self._outside.rise(found.sigma, share)
        free = reading_is_free(self.device)
        leapt = rise > SUDDEN
        sudden = [i for i, is_sudden in enumerate(leapt.tolist()) if is_sudden] if free else []
        if not free:
            residual = torch.where(leapt, found.sigma, found.residual)
            found = Estimates(found.sigma, residual, found.captured)
        elif sudden:
            again = [operators[i] for i in sudden]
            self.power.refill_(torch.ones(len(sudden), dtype=torch.bool, device="cpu"), sudden)
            for _ in range(SUDDEN_CALLS):
                newer = self.power.step_(again, sudden)
            at = to_device(sudden, self.device, torch.int64)
            pairs = zip(found.columns, newer.columns, strict=True)
            found = Estimates(*(x.index_copy(0, at, y) for x, y in pairs))
            share = self._outside.share(found.sigma, found.captured, size)
        self._outside.note(found.sigma, share)
        return found, None if free else rise, sudden

    def _uncertain(
        self, operators: Mapping[int, Operator], sigma: Tensor, residual: Tensor
    ) -> list[int]:
        """Return the held layers near their threshold whose block lags, to be certified.

        Only on a CPU, where a certificate is cheap and the host may look. Strict certifies anyway.
        """
        if self._strict or not self._held or not reading_is_free(self.device):
            return []
        near = lagging(sigma, residual) & (sigma + residual > self.thresholds.value)
        here = (i for i, is_near in enumerate(near.tolist()) if is_near and i in operators)
        wanted = set(self._held) - self._caps.layers
        return [i for i in here if i in wanted and self._certifiable[i]]

    def _sizes(self, operators: Mapping[int, Operator], which: Collection[int]) -> Tensor:
        """Return the Frobenius norms of ``which`` layers, [L]; NaN for the others."""
        weights: dict[int, Tensor] = {}
        found = torch.full_like(self._watched, math.nan)
        for i in which:
            operator = operators.get(i)
            if isinstance(operator, Matrix | BlockDiagonal):
                weights[i] = operator.weight
            elif isinstance(operator, LowRank):
                found[i].copy_(operator.frobenius())
        if not weights:
            return found
        at = to_device(list(weights), self.device, torch.int64)
        return found.index_copy(0, at, torch.stack(norms(list(weights.values()))))

    def _spread(self, at: Tensor | None, columns: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return values of the layers ``at`` (None: all) as those of all, NaN for the others."""
        if at is None:
            return columns
        nan = torch.full((len(columns), len(self.layers)), math.nan, device=self.device)
        return nan.index_copy_(1, at, torch.stack(list(columns))).unbind()

    def state(self) -> list[dict[str, Any]]:
        """Return the warm state of each layer, on the device."""
        state = self.power.state_dict()
        columns = zip(self.thresholds.reference, state["blocks"], state["steps"], strict=True)
        return [{"reference": r, "block": v, "iterations": n} for r, v, n in columns]

    def load(self, states: Sequence[Mapping[str, Any] | None]) -> None:
        """Continue from ``states``, one per layer; None and vectors of another length start cold.

        Of a block with another number of vectors the best ones are kept. A state may hold the
        reference alone.
        """
        ours = self.power.state_dict()
        reference = list(self.thresholds.reference.unbind())
        cold = []
        for k, state in enumerate(states):
            if state is not None:
                reference[k] = state["reference"].to(reference[k])
            if state is None or "block" not in state:
                cold.append(k)
                continue
            block, theirs = ours["blocks"][k], state["block"]
            if block.shape[1:] == theirs.shape[1:]:
                block[: len(theirs)] = theirs[: len(block)]
                ours["steps"][k] = int(state["iterations"])
        self.power.load_state_dict(ours)
        if cold:
            self._settle(cold)
        self.thresholds.restore(torch.stack(reference))

    def _settle(self, layers: Sequence[int]) -> Estimates:
        """Iterate on these layers until sigma may be the reference of a run, and return it."""
        operators = [self.layers[i].operator() for i in layers]
        for _ in range(REGISTER_CALLS if reading_is_free(self.device) else REGISTER_CALLS_UNREAD):
            estimates = self.power.step_(operators, layers)
        return estimates


def rms(layer: Layer) -> float:
    """Return sqrt(fan_out / fan_in), the sigma that keeps the root mean square of activations."""
    return math.sqrt(layer.fan_out / layer.fan_in)
