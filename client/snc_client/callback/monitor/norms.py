"""NormSignals: measures norms of weights, gradients and updates, on the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import torch
from torch import Tensor, nn

from snc_client.callback.interruption import is_from_signal_handler
from snc_client.callback.model.live_parameters import Slots
from snc_client.callback.monitor.update_norms import Move, UpdateSigma, moves, supported
from snc_client.callback.readback.metrics import NORM_METRICS, NOT_MEASURED, UPDATE_RATIOS
from snc_client.devices import reading_is_free, to_device
from snc_client.estimator.frobenius import by_rows, norms
from snc_client.layers import Layer
from snc_client.operators import BlockDiagonal, LowRank, Matrix
from snc_client.operators.sharded import is_dtensor, is_whole, local_part

log = logging.getLogger("snc")

RUN_SIGNALS: Final = ("loss", "lr", "step_seconds", "callback_seconds")
ALL_SIGNALS: Final = NORM_METRICS + RUN_SIGNALS
KNOWN_SIGNALS: Final = (*ALL_SIGNALS, "gains", "lipschitz")  # the last waits for its result
GAIN = "snc_gain_"  # the scalar in which a gain's norm travels to the host
DEFAULT_SIGNALS: Final = ("frobenius", "stable_rank", "grad_norm", *RUN_SIGNALS)

# A step looks at each parameter and gradient of the model: these are called without a Python frame.
_gradient: Callable[[Tensor], Tensor | None] = attrgetter("grad")
_device: Callable[[Tensor], torch.device] = attrgetter("device")
_layout: Callable[[Tensor], torch.layout] = attrgetter("layout")


class NormSignals:
    """The signals that a job selects, one number per layer or per run and step.

    * ``frobenius``: of the measured matrix, after the optimizer's step and before the action; of
      the kernel where sigma is that of a convolution. One read of each weight.
    * ``stable_rank``: frobenius^2 / sigma^2, from above as sigma is from below; 0 for a zero
      matrix. Not of a convolution. It comes with ``frobenius`` at no cost.
    * ``grad_norm``: of the gradient present at `step` (after clipping, if the loop clips), and as a
      scalar of all gradients together, unless `step` gets one of that name: the norm that clipping
      returns costs nothing. One read of each gradient. Absent where a weight is computed
      from others or its gradient is sparse, and where gradients are gone or zeroed before `step`;
      that is logged once. With sharded weights the norm of all gradients together is a sum over
      the ranks, see docs/layers.md.
    * ``update_norm``: what the optimizer's step added to the weight, without the action. With
      ``guard``: from the guard's own copy. Else, with ``optimizer=``: for SGD from gradient,
      momentum and learning rate, for Adam and AdamW from their moments; about five reads of each
      weight. Absent for others, because that would take a second copy of the model.
    * ``update_sigma``: the spectral norm of that step, for the same optimizers, from below. An
      eighth of the layers in turn. With it come ``update_sigma_ratio``, over sigma, and
      ``update_sigma_rms``, over sqrt(fan_out / fan_in). Of layers that are a matrix.
    * ``loss``, ``lr``, ``step_seconds``, ``callback_seconds``: scalars of the run.
    * ``gains``: the norm of each 1-d parameter called ``weight``, as those of normalisations are: a
      row of its own in the table, with ``frobenius`` and nothing else.
    * ``lipschitz``: a scalar too, of `snc_client.callback.schedule.network_bound`.

    Norms are float32: beyond 1e19 they are infinite, below 1e-19 zero. Nothing waits for a device.
    Called without gradients: `LayerMonitor` switches them off.
    """

    def __init__(
        self,
        wanted: Iterable[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        guarded: bool = False,
    ) -> None:
        self._wanted = _checked(wanted)
        self._optimizer = optimizer
        self.optimizer = optimizer
        self.guarded = guarded
        self._slots = Slots(model)
        self.gains = self._gains_of(model)
        self._said: set[str] = set()
        self._ranked: dict[str, bool] = {}  # layer -> whether F and sigma are of the same matrix
        self._found: dict[str, dict[str, Tensor]] = {}  # signal -> layer -> 0-d
        self._sizes: tuple[Hashable, Tensor] | None = None  # asked for twice at each step
        self.scalars: dict[str, Tensor] = {}  # of the run as a whole, found by `begin`
        self.sharded = False  # then no norm of what lies here is that of all gradients together
        self.declared: dict[str, float] = {}  # what the job says of itself in each row
        self._update_sigma = UpdateSigma()
        for name, known in (("update_norm", guarded), ("update_sigma", False)):
            if name in self._wanted and not known and not supported(optimizer):
                kind = "none" if optimizer is None else type(optimizer).__name__
                self._say(name, f"needs SGD, Adam or AdamW as optimizer=, got {kind}")

    @property
    def steps_of(self) -> torch.optim.Optimizer | None:
        """Return the optimizer from whose state ``update_norm`` is taken, None if none is."""
        looked_at = "update_norm" in self._wanted and not self.guarded
        return self._optimizer if looked_at and supported(self._optimizer) else None

    @property
    def update_norms(self) -> Mapping[str, Tensor]:
        """Return the update norms that `begin` measured last, by layer, 0-d."""
        return self._found.get("update_norm", {})

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the metrics that the job selects, in the order of a row."""
        found = tuple(name for name in NORM_METRICS if name in self._wanted)
        return (*found, *UPDATE_RATIOS) if "update_sigma" in found else found

    def wanted(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """Return the scalars without those that the job switched off."""
        return {k: v for k, v in scalars.items() if k in self._wanted or k not in RUN_SIGNALS}

    def relist(self, model: nn.Module) -> None:
        """Look up the parameters again, after the model has replaced some."""
        self._slots = Slots(model)
        self.gains = self._gains_of(model)
        self._ranked.clear()

    def _gains_of(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the gains by name; of one whole tensor each."""
        if "gains" not in self._wanted:
            return {}
        named = dict(model.named_parameters())
        return {
            name: p.detach()
            for name, p in named.items()
            if p.ndim == 1 and name.split(".")[-1] == "weight" and type(p.detach()) is Tensor
        }

    def parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters that the model has now."""
        return self._slots.parameters()

    def leave(self, layers: Sequence[Layer]) -> None:
        """Leave out gains that are layers themselves, by ``maps=``."""
        names = {layer.name for layer in layers}
        self.gains = {name: gain for name, gain in self.gains.items() if name not in names}

    def register(self, layers: Sequence[Layer]) -> None:
        """Measure weights that have not been trained yet: they have no gradient and no update."""
        self._found, self._sizes, self.scalars = {}, None, {}
        self._measure_weights(layers, {})
        self.leave(layers)

    def begin(
        self,
        layers: Sequence[Layer],
        *,
        known: Mapping[str, Mapping[str, Tensor]],
        all_gradients: bool,
    ) -> None:
        """Measure the step that the optimizer has just made, before the action.

        ``known`` holds norms that the guard has measured at this step: metric -> layer -> 0-d.
        ``all_gradients``: also measure the norm of all gradients together, a scalar of the run.
        """
        self._found, self._sizes, self.scalars = {}, None, {}
        try:
            self._begin(layers, known, all_gradients)
        except Exception as error:  # an outer edge: a signal that fails must not stop holding
            if is_from_signal_handler(error):
                raise
            self._say("a norm", f"could not be measured: {error!r}")

    def _begin(
        self,
        layers: Sequence[Layer],
        known: Mapping[str, Mapping[str, Tensor]],
        all_gradients: bool,
    ) -> None:
        self._measure_weights(layers, known.get("frobenius", {}))
        sizes = norms(list(self.gains.values())) if self.gains else []
        self.scalars |= {f"{GAIN}{place}": size for place, size in enumerate(sizes)}
        self._found["update_norm"] = dict(known.get("update_norm", {}))
        if getattr(self._optimizer, "found_inf", None) is not None:  # gradients are still scaled
            return
        if self.steps_of is not None or self._measures_updates:
            self._updates(layers)
        if "grad_norm" in self._wanted:
            self._gradients(layers, all_gradients)

    def of(self, layers: Sequence[Layer], device: torch.device, sigma: Tensor) -> dict[str, Tensor]:
        """Return `metrics` of layers on one device, float32 [l] each; ``sigma`` [l] is theirs."""
        named = {
            name: self._stacked(name, layers, device)
            for name in self.metrics
            if name not in ("frobenius", "stable_rank", *UPDATE_RATIOS)
        }
        if "update_sigma" in named:
            rms = [(layer.fan_out / layer.fan_in) ** 0.5 for layer in layers]
            for name, over in zip(
                UPDATE_RATIOS, (sigma, to_device(rms, device, torch.float32)), strict=True
            ):
                update = named["update_sigma"]
                named[name] = torch.where(update < 0, NOT_MEASURED, update / over)
        frobenius = self.frobenius(layers, device)
        if frobenius is not None and "frobenius" in self._wanted:
            named["frobenius"] = frobenius
        if frobenius is not None and "stable_rank" in self._wanted:
            named["stable_rank"] = self._stable_rank(layers, frobenius, sigma)
        return named

    def frobenius(self, layers: Sequence[Layer], device: torch.device) -> Tensor | None:
        """Return the norms of the layers measured on ``device``, float32 [l]; None if not asked."""
        if not {"frobenius", "stable_rank"} & self._wanted:
            return None
        key = (device, *(layer.name for layer in layers))
        if self._sizes is None or self._sizes[0] != key:
            self._sizes = key, self._stacked("frobenius", layers, device)
        return self._sizes[1]

    def _stacked(self, metric: str, layers: Sequence[Layer], device: torch.device) -> Tensor:
        none = torch.full((), NOT_MEASURED, device=device)
        found = self._found.get(metric, {})
        return torch.stack([found.get(layer.name, none) for layer in layers])

    def _measure_weights(self, layers: Sequence[Layer], known: Mapping[str, Tensor]) -> None:
        if {"frobenius", "stable_rank"} & self._wanted:
            self._found["frobenius"] = self._frobenius(layers, known)

    def _frobenius(self, layers: Sequence[Layer], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {layer.name: known[layer.name] for layer in layers if layer.name in known}
        stored: dict[str, Tensor] = {}
        for layer in layers:
            if layer.name in found:
                continue
            parameter = layer.parameter()
            if parameter is not None:
                stored[layer.name] = layer.part(local_part(parameter))
                continue
            operator = layer.operator()
            if isinstance(operator, Matrix | BlockDiagonal):
                stored[layer.name] = operator.weight
            elif isinstance(operator, LowRank):
                found[layer.name] = operator.frobenius()
        found.update(zip(stored, norms(list(stored.values())), strict=True))
        return found

    def _stable_rank(self, layers: Sequence[Layer], frobenius: Tensor, sigma: Tensor) -> Tensor:
        for layer in layers:
            if layer.name not in self._ranked:
                operator = layer.operator()
                self._ranked[layer.name] = isinstance(operator, Matrix | BlockDiagonal | LowRank)
        rank = (frobenius / sigma).square()
        if not (reading_is_free(sigma.device) and all((frobenius > 0).tolist())):
            rank = torch.where((sigma == 0) & (frobenius == 0), 0.0, rank)
            rank = torch.where(frobenius < 0, NOT_MEASURED, rank)
        if all(self._ranked[layer.name] for layer in layers):
            return rank
        known = [self._ranked[layer.name] for layer in layers]
        return torch.where(to_device(known, sigma.device, torch.bool), rank, NOT_MEASURED)

    def _gradients(self, layers: Sequence[Layer], all_gradients: bool) -> None:
        """Measure the gradient of every layer; ``all_gradients``: also that of all parameters."""
        of = [(layer, _here(p.grad)) for layer in layers if (p := layer.parameter()) is not None]
        grads = [*map(_gradient, self._slots.parameters())] if all_gradients else []
        plain = {*map(type, grads)} <= {Tensor, type(None)}
        every = _by_identity(grads if plain else map(_here, grads))
        counted = every.keys()
        every = every | _by_identity(gradient for _, gradient in of)
        dense = _dense(every)
        others = [gradient for i, gradient in every.items() if i not in dense]
        if (others and not all(map(is_dtensor, others))) or not every:
            self._say("grad_norm", "needs dense gradients when step() is called: call it before "
                      "zero_grad()")  # fmt: skip
        if not dense:
            return
        whole = dict(zip(dense, norms(list(dense.values())), strict=True))
        parts: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for layer, gradient in of:
            if gradient is None or id(gradient) not in dense:
                continue
            part = layer.part(gradient)
            if part is gradient:
                found[layer.name] = whole[id(gradient)]
            else:
                parts[layer.name] = part
        found.update(zip(parts, norms(list(parts.values())), strict=True))
        if len({*map(_device, whole.values())}) == 1:
            summed = [norm for i, norm in whole.items() if i in counted or not all_gradients]
            total = torch.linalg.vector_norm(torch.stack(summed))
            found, total = self._unless_zeroed(found, total)
            if all_gradients and len(dense) == len(every) and not self.sharded:
                self.scalars["grad_norm"] = total
        self._found["grad_norm"] = found

    def _unless_zeroed(
        self, found: dict[str, Tensor], total: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Treat gradients that are all zero as zeroed before `step`, where the loop calls that."""
        if self._optimizer is not None:  # the hook runs before anything can zero them
            return found, total
        if reading_is_free(total.device) and any((total != 0).reshape(1).tolist()):
            return found, total
        told = torch.stack([*found.values(), total])
        *norms, total = torch.where(total == 0, NOT_MEASURED, told).unbind()
        return dict(zip(found, norms, strict=True)), total

    @property
    def _measures_updates(self) -> bool:
        return "update_sigma" in self._wanted and supported(self._optimizer)

    def _updates(self, layers: Sequence[Layer]) -> None:
        """Measure the last step of the layers: its norm, and sigma of those whose turn it is."""
        assert self._optimizer is not None
        normed = list(layers) if self.steps_of is not None else []
        turn = self._update_sigma.chosen(layers) if self._measures_updates else []
        of: dict[int, list[Layer]] = {}
        for layer in dict.fromkeys([*normed, *turn]):
            parameter = layer.parameter()
            if parameter is not None:
                of.setdefault(id(parameter), []).append(layer)
        found: dict[str, Tensor] = {}
        sigmas: dict[str, Tensor] = {}
        for move in moves(self._optimizer, set(of)):
            for layer in of[id(move.parameter)]:
                if normed:
                    found[layer.name] = by_rows(layer.part(move.direction)) * move.factor
                if layer in turn and (sigma := self._sigma_of(layer, move)) is not None:
                    sigmas[layer.name] = sigma
        self._found["update_sigma"] = sigmas
        if normed:
            self._found["update_norm"] = found

    def _sigma_of(self, layer: Layer, move: Move) -> Tensor | None:
        return self._update_sigma.measure(layer, move.direction, move.factor)

    def _say(self, signal: str, what: str) -> None:
        if signal not in self._said:
            self._said.add(signal)
            log.warning("snc: %s %s: it is not reported where it lacks that", signal, what)


def _here(gradient: Tensor | None) -> Tensor | None:
    """Return what lies here of a gradient that every process holds whole; others as they are."""
    if gradient is None or type(gradient) is Tensor or not is_whole(gradient):
        return gradient
    return local_part(gradient)


def _by_identity(gradients: Iterable[Tensor | None]) -> dict[int, Tensor]:
    return {id(gradient): gradient for gradient in gradients if gradient is not None}


def _dense(gradients: dict[int, Tensor]) -> dict[int, Tensor]:
    """Return those that are one plain tensor: neither sparse nor a shard."""
    kinds = {*map(type, gradients.values())}, {*map(_layout, gradients.values())}
    if kinds == ({Tensor}, {torch.strided}):
        return gradients
    return {
        i: gradient
        for i, gradient in gradients.items()
        if type(gradient) is Tensor and gradient.layout == torch.strided
    }


def _checked(wanted: Iterable[str]) -> frozenset[str]:
    if isinstance(wanted, str):
        raise ValueError(f"signals must be a sequence of names, got {wanted!r}")
    names = tuple(wanted)
    for name in names:
        if name not in KNOWN_SIGNALS:
            raise ValueError(f"signals must be among {', '.join(KNOWN_SIGNALS)}, got {name!r}")
    return frozenset(names)
