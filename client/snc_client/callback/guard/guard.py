"""Guard: undoes a step that would ruin the training, on the device and in the same step."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from snc_client.callback.chunks import chunks
from snc_client.callback.guard.inspection import Floor, Look
from snc_client.callback.guard.settings import CALM, MOST_ROLLBACKS, GuardSettings, GuardStopped
from snc_client.callback.guard.undo import KeptState, Snapshots, Versions
from snc_client.callback.model.live_parameters import Slots
from snc_client.callback.model.master_weights import KEYS
from snc_client.callback.readback.metrics import GUARD_METRIC, NOT_MEASURED
from snc_client.devices import reading_is_free, to_device
from snc_client.estimator.frobenius import norms
from snc_client.layer_row import LayerRow
from snc_client.layers import Layer
from snc_client.operators.sharded import local_part

log = logging.getLogger("snc")

TALLY = ("guard_vetoes", "guard_in_row", "guard_rollbacks", "guard_chain", "guard_calm")
STEPS = "guard_steps"  # number of steps in the tally
ARMED = 10  # first steps, accepted without a check: they leap
JUMP, RATIO = 0.10, 0.15  # of log sigma; of the update over the weight. Healthy: .041 and .051
# A layer held at its threshold is rescaled at each step: its movement in between is no fault.
HELD_FACTOR, HELD_FROM = 5.0, 0.9
# A broken minibatch causes a few steps far beyond the limits: restoring the state helps then. A
# learning rate that is merely too high repeats the same step from the same state.
FAR, RESTORED = 3.0, 5  # times the limit; rejections in a row
# From this rejection in a row on, a finite step is made in part: what lasts that long is no broken
# minibatch, and a job whose every step is too large goes on with smaller ones.
CLIP_FROM, CLIP_TO = 5, 0.3  # of the limits
SNAPSHOT_EVERY = 25  # the older of two copies is 25 to 50 steps old


class Verdict(NamedTuple):
    """The decision about a step, 0-d bool each on the device."""

    rejected: Tensor
    clipped: Tensor  # rejected, and a part of the step is made
    back: Tensor  # rejected, and the weights roll back to the older copy
    restored: Tensor  # rejected, and the optimizer's state is restored too
    cleared: Tensor  # rejected, and the optimizer's state is zeroed


class Guard:
    """Reject steps that leap; keep the copies that undo them.

    After ten steps, a step is rejected if a parameter is not finite, if log sigma of a layer
    moved by more than .10, or if its update exceeds .15 of its Frobenius norm, against the last
    *accepted* step; five times that for a layer held at 0.9 of its threshold or more. Layers born
    at zero get half the median layer's sigma and norm added. A rejected step is undone bit for bit:
    all parameters and the floating-point buffers of the state dict become those of the last
    accepted step, from the guard's own copy, so damage done between two steps is undone too.

    The state of the optimizer, if there is one, is restored at the first rejection in a row, and up
    to the fifth while steps exceed a limit three times or are not finite. After that the same state
    would repeat the same step: the present state stays, or is cleared if a weight was not finite.
    Counters that the optimizer keeps on the host (``step`` of AdamW beside a GPU) go on: the host
    does not see that a step was undone.

    From the sixth rejection in a row on, a finite step is made in part: the largest fraction that
    moves no layer by more than 0.3 of its limits. What lasts that long is no broken batch, and a
    job whose every step is too large goes on. With ``at_limit="roll back"`` it is undone as well.
    After ``max_rejections`` in a row that were undone the weights roll back to a copy 25 to 50
    accepted steps old and the optimizer's state to that of the last accepted step.

    Memory: one copy of the model and of the optimizer's state, and two more of the model for the
    roll-back: with AdamW five times the weights. Cost: about four passes over the weights and two
    over the state at each step. No wait for the device, no random number; an accepted step is not
    changed by a bit.

    Version counters and addresses of the parameters reveal a change between steps
    (``load_state_dict``): the next step is accepted without a check and starts a new copy. A write
    that bypasses these counters (``.data``, another process's memory, a bit flip) is not detected,
    and is undone if it leaps.

    Raises ValueError if the parameters are not on one device, or are sharded; `ShardedGuard` is for
    shards.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        optimizer: torch.optim.Optimizer | None,
        settings: GuardSettings,
    ) -> None:
        self._slots = Slots(model)
        self._layers = tuple(layers)
        self._optimizer = optimizer
        self._settings = settings
        self._check()
        self.device = self._slots.parameters()[0].device
        self._tally = torch.zeros(len(TALLY), dtype=torch.int32, device=self.device)
        self._told = (0, 0)  # vetoes and roll-backs in the newest arrived row
        self._known_row = self._known_at = 0  # its rejections in a row, and its number of steps
        self._steps = 0
        self.reset()

    def reset(self) -> None:
        """Accept the next step without a check, after an intended change of the weights."""
        self._kept: list[Tensor] = []
        self._snapshots = Snapshots()
        self._state = KeptState(self._optimizer) if self._optimizer is not None else None
        self._versions = Versions()
        self._accepted: Tensor | None = None  # sigma [L] after the last accepted step
        self._floor: Floor | None = None
        self._look: Look | None = None
        self._fraction = torch.ones((), device=self.device)  # of a step that is made in part
        self.undone = torch.zeros((), dtype=torch.bool, device=self.device)  # whether the last was

    def relist(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        """Replace the layers (known ones keep their indices) and start a new copy."""
        self._slots, self._layers = Slots(model), tuple(layers)
        self.reset()

    @torch.no_grad()
    def look(self) -> dict[str, dict[str, Tensor]]:
        """Compare the weights with those of the last accepted step, before the action.

        Returns update_norm and frobenius of layers stored in a parameter, 0-d float32 by name.
        """
        parameters = self._parameters()
        if self._changed(parameters):
            self._kept = []
        known = bool(self._kept) and self._fits(self._kept, self._values())
        self._look = Look(known, {}, self._frobenius(), torch.zeros((), device=self.device))
        if known:
            self._compare(parameters, self._look)
        return {"update_norm": self._look.updates, "frobenius": self._look.frobenius}

    @torch.no_grad()
    def settle(
        self,
        sigma: Tensor,
        threshold: Tensor,
        scale: Tensor,
        reference: Tensor,
        held: Sequence[int],
    ) -> tuple[Tensor, dict[str, Any]]:
        """Judge the step after the action, and undo it if rejected; float32 [L], NaN: unknown.

        ``held`` are the layers that are rescaled or capped. Returns the step of each layer relative
        to its limit, [L], and the scalars that `arrived` reads.
        """
        look, self._look = self._look, None
        assert look is not None, "settle follows look"
        if self._floor is None:
            self._floor = Floor.of(reference, self._stack(look.frobenius, 0.0))
        strain = self._strain(look, sigma, threshold, held)
        judged = look.known if self._steps >= ARMED else False
        finite = look.largest.isfinite()
        bad = (~finite | (strain > 1).any()) & judged
        verdict = self._verdict(bad, finite, ~finite | (strain > FAR).any())
        self.undone = verdict.rejected
        self._fraction = CLIP_TO / torch.nan_to_num(strain, nan=1.0).amax().clamp(min=1.0)
        try:
            self._carry_out(verdict, sigma * torch.nan_to_num(scale, nan=1.0))
        finally:  # ranks count alike, whatever one of them lacks memory for
            self._steps += 1
        said: dict[str, Any] = dict(zip(TALLY, self._tally.float().unbind(), strict=True))
        return strain, {**said, STEPS: self._steps}

    def arrived(
        self, step: int, scalars: dict[str, float], worst: str | None
    ) -> GuardStopped | None:
        """Replace the device's counts in ``scalars`` by the new ones; return a reason to stop.

        ``worst`` is the layer with the largest step relative to its limit.
        """
        if STEPS not in scalars:
            return None
        vetoes, in_row, rollbacks, chain, _ = (int(scalars.pop(name)) for name in TALLY)
        new = (vetoes - self._told[0], rollbacks - self._told[1])
        self._told = (vetoes, rollbacks)
        self._known_row, self._known_at = in_row, int(scalars.pop(STEPS))
        scalars["guard_vetoes"], scalars["guard_rollbacks"] = map(float, new)
        if new[0] and in_row == 1:
            log.warning("snc: the guard undid step %d: %s went too far", step, worst)
        if not new[1]:
            return None
        log.error("snc: the guard rolled the weights back at step %d (%d in a row)", step, chain)
        return GuardStopped(step) if chain >= MOST_ROLLBACKS else None

    def _check(self) -> None:
        """Raise ValueError for parameters that it cannot judge."""
        parameters = self._slots.parameters()
        sharded = any(x.sharded for x in self._layers)  # of FSDP1 and Megatron they are plain
        if sharded or any(type(p.detach()) is not Tensor for p in parameters):
            raise ValueError(
                "guard must be False for a model that is sharded, got True: each rank would undo "
                "steps of its own part"
            )
        if len({p.device for p in parameters}) != 1:
            raise ValueError("guard must be False for a model on several devices, got True")

    def _parameters(self) -> list[Tensor]:
        """Return the parameters of the model and the masters that the optimizer steps."""
        found: dict[int, Tensor] = {id(p): p for p in self._slots.parameters()}
        for group in self._optimizer.param_groups if self._optimizer is not None else ():
            for p in group["params"]:
                state = self._optimizer.state.get(p, {}) if self._optimizer is not None else {}
                masters = [state[key] for key in KEYS if isinstance(state.get(key), Tensor)]
                found.update((id(x), x) for x in [p, *masters] if x.device == self.device)
        return [p for p in found.values() if p.is_floating_point()]

    def _changed(self, parameters: Sequence[Tensor]) -> bool:
        """Return whether anything but a step has changed them."""
        here = list(map(local_part, parameters))
        changed = self._versions.changed(here, learn=self._steps < ARMED)
        if changed:
            log.info("snc: weights were changed between steps: the guard starts a new copy")
        return changed

    def _values(self) -> list[Tensor]:
        """Return the tensors to copy, what lies here of them: parameters first, then buffers.

        Writes to them bypass autograd's counters: a graph that outlives the step may hold frozen
        weights.
        """
        return [local_part(p).data for p in [*self._parameters(), *self._slots.buffers()]]

    def _frobenius(self) -> dict[str, Tensor]:
        stored = {
            x.name: x.part(p.detach()) for x in self._layers if (p := parameter_of(x)) is not None
        }
        return dict(zip(stored, norms(list(stored.values())), strict=True))

    def _compare(self, parameters: Sequence[Tensor], look: Look) -> None:
        """Measure the norm of each parameter's and each layer's change, chunk by chunk."""
        of: dict[int, list[Layer]] = {}
        for layer in self._layers:
            parameter = parameter_of(layer)
            if parameter is not None:
                of.setdefault(id(parameter), []).append(layer)
        sizes: list[Tensor] = []
        for chunk in chunks(zip(parameters, self._kept, strict=False), _numel):
            moved = torch._foreach_sub([p.detach() for p, _ in chunk], [kept for _, kept in chunk])
            whole = norms(moved)
            sizes += whole
            for (parameter, _), change, size in zip(chunk, moved, whole, strict=True):
                for layer in of.get(id(parameter), []):
                    part = layer.part(change)
                    look.updates[layer.name] = size if part is change else norms([part])[0]
        look.largest = torch.stack(sizes).amax()  # passes NaN on

    def _strain(self, look: Look, sigma: Tensor, threshold: Tensor, held: Sequence[int]) -> Tensor:
        """Return the larger of jump and update over its limit, [L]; inf where not finite."""
        assert self._floor is not None
        update = self._stack(look.updates, 0.0)
        size = (self._stack(look.frobenius, 0.0) + self._floor.frobenius).clamp(min=1e-9)
        ratio = torch.where(update.isfinite(), update / size / RATIO, torch.inf)
        if self._accepted is None:
            return torch.full_like(ratio, NOT_MEASURED)
        # After part f of a step sigma is at most 1 + f (e^jump - 1) times what it was.
        jump = (self._log(sigma) - self._log(self._accepted)).abs().expm1() / math.expm1(JUMP)
        at_threshold = self._accepted >= HELD_FROM * threshold
        is_held = torch.zeros_like(at_threshold)
        if held:
            is_held.index_fill_(0, to_device(held, self.device, torch.int64), True)
        wide = torch.where(at_threshold & is_held, HELD_FACTOR, 1.0)
        return torch.fmax(jump, ratio) / wide

    def _log(self, sigma: Tensor) -> Tensor:
        assert self._floor is not None
        return (sigma + self._floor.sigma).clamp(min=1e-6).log()

    def _verdict(self, bad: Tensor, finite: Tensor, far: Tensor) -> Verdict:
        """Count the step and return the decision about it; the host reads nothing."""
        vetoes, in_row, rollbacks, chain, calm = self._tally.unbind()
        most = self._settings.max_rejections
        rejected, back = bad, torch.zeros_like(bad)
        clipped = torch.zeros_like(bad)
        if self._settings.at_limit == "clip":
            clipped = bad & finite & (in_row >= CLIP_FROM)
        if self._settings.at_limit == "accept":
            rejected = bad & ((in_row < most) | ~finite)
        else:
            back = bad & ~clipped & (in_row + 1 >= most)
        restored = rejected & ((in_row == 0) | (far & (in_row < RESTORED)))
        zero = torch.zeros_like(in_row)
        counts = [
            vetoes + rejected,
            torch.where(rejected & ~back, in_row + 1, zero),
            rollbacks + back,
            torch.where(back, torch.where(calm >= CALM, zero, chain) + 1, chain),
            torch.where(back, zero, calm + ~rejected),
        ]
        self._tally = torch.stack([count.to(torch.int32) for count in counts])
        return Verdict(rejected, clipped, back, restored, rejected & ~finite & ~restored & ~back)

    def _carry_out(self, verdict: Verdict, sigma: Tensor) -> None:
        """Undo or keep the step in weights, buffers and optimizer state; update the copies."""
        parameters = self._parameters()
        values = self._values()
        if self._accepted is None or not self._fits(self._kept, values):
            self._kept, self._accepted = [value.clone() for value in values], sigma.clone()
            self._snapshots.clear()
            if self._state is not None:
                self._state.accept()
        elif reading_is_free(self.device) and not any(verdict.rejected.reshape(1).tolist()):
            self._keep(values, sigma)
        else:
            self._undo(verdict, values, sigma)
        if self._settings.at_limit != "accept" and self._steps % SNAPSHOT_EVERY == ARMED - 1:
            self._snapshots.take(verdict.rejected, self._kept, self._accepted)
        self._versions.note(list(map(local_part, parameters)))

    def _keep(self, values: Sequence[Tensor], sigma: Tensor) -> None:
        assert self._accepted is not None
        torch._foreach_copy_(self._kept, list(values))
        self._accepted = torch.where(sigma.isnan(), self._accepted, sigma)
        if self._state is not None:
            self._state.accept()

    def _undo(self, verdict: Verdict, values: Sequence[Tensor], sigma: Tensor) -> None:
        """Apply the verdict on the device: the host does not read it."""
        assert self._accepted is not None
        may_clip = self._settings.at_limit == "clip" and self._most_in_row() >= CLIP_FROM
        for value, kept in zip(values, self._kept, strict=True):
            undone = self._part(verdict, kept, value) if may_clip else kept
            torch.where(verdict.rejected, undone, value, out=value)
        undone = self._part(verdict, self._accepted, sigma) if may_clip else self._accepted
        self._accepted = torch.where(verdict.rejected | sigma.isnan(), undone, sigma)
        if self._may_roll_back():
            self._accepted = self._snapshots.restore(verdict.back, values, self._accepted)
        torch._foreach_copy_(self._kept, list(values))
        if self._state is not None:
            restored = verdict.restored | verdict.back
            self._state.settle(verdict.rejected, restored, verdict.cleared)

    def _part(self, verdict: Verdict, kept: Tensor, value: Tensor) -> Tensor:
        """Return ``kept``, or the part of the way to ``value`` that is made if it is clipped."""
        part = kept + self._fraction.to(value.dtype) * (value - kept)
        return torch.where(verdict.clipped, part, kept)

    def _most_in_row(self) -> int:
        """Return the most rejections in a row so far, by the newest counts on the host."""
        return self._known_row + self._steps - self._known_at

    def _may_roll_back(self) -> bool:
        """Return whether this step may roll back."""
        most = self._most_in_row()
        return self._settings.at_limit != "accept" and most + 1 >= self._settings.max_rejections

    def _stack(self, found: Mapping[str, Tensor], default: float) -> Tensor:
        nothing = torch.full((), default, device=self.device)
        return torch.stack([found.get(layer.name, nothing) for layer in self._layers])

    @staticmethod
    def _fits(kept: Sequence[Tensor], values: Sequence[Tensor]) -> bool:
        return len(kept) == len(values) and all(
            (k.shape, k.dtype, k.device) == (v.shape, v.dtype, v.device)
            for k, v in zip(kept, values, strict=True)
        )


def furthest(row: LayerRow, names: Sequence[str]) -> str | None:
    """Return the layer with the largest step relative to its limit; None if none was judged."""
    strain = row.metric(GUARD_METRIC)
    return None if np.isnan(strain).all() else names[int(np.nanargmax(strain))]


def parameter_of(layer: Layer) -> Tensor | None:
    """Return the parameter of a layer, None if the model has it no more."""
    try:
        return layer.parameter()
    except LookupError:  # removed from the model: the other layers are still judged
        return None


def _numel(pair: tuple[Tensor, Tensor]) -> int:
    return pair[0].numel()
