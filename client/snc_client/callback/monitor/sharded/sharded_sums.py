"""ShardedSums: one iteration of all sharded layers, by one sum per group of processes."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from snc_client.callback.interruption import signals_wait
from snc_client.callback.model.distributed import joined
from snc_client.callback.monitor.sharded.agreed import Agreed, Agreement, columns
from snc_client.callback.monitor.sharded.agreed import dtype as dtype_of
from snc_client.callback.monitor.sharded.contribution import Extras, proof_size, record, squares
from snc_client.callback.monitor.sharded.gradient_sums import GradientSums
from snc_client.callback.monitor.sharded.groups import Groups, SumLost
from snc_client.callback.monitor.sharded.layer_sums import (
    Form,
    LayerSums,
    agreed,
    alike,
    unpacked,
)
from snc_client.callback.monitor.sharded.roll_call import Members, RollCall
from snc_client.devices import reading_is_free, to_device
from snc_client.estimator import Estimates
from snc_client.estimator.sharded_power import ShardedPower, bands
from snc_client.layers import Layer
from snc_client.operators.sharded import ShardedMatrix, members

log = logging.getLogger("snc")

T = TypeVar("T")
BLOCK = 16
MOST_UNSOUND = 3
LAG = 3  # calls after which the host looks at a result that was copied from a device


@dataclass(frozen=True)
class Found:
    """The result of an iteration; all but ``matrices`` is equal on all processes."""

    estimates: Estimates
    sums: Sequence[LayerSums]
    sound: Tensor
    """Bool [L]: all processes have given their share, and agree on what they measure."""
    matrices: Sequence[ShardedMatrix | None]
    """The pieces that lie here; None where this process could not give its share."""
    grad_norm: Tensor | None
    """Of all gradients of the model together, 0-d, see `GradientSums.total`."""


@dataclass
class _Attempt:
    """What has been done of a measurement."""

    vectors: list[Tensor] = field(default_factory=list)
    matrices: list[ShardedMatrix | None] = field(default_factory=list)
    sums: dict[int, LayerSums] = field(default_factory=dict)
    rest: dict[Members, Tensor] = field(default_factory=dict)
    some: bool = False
    """Whether a sum has been made."""

    @property
    def all(self) -> list[LayerSums]:
        return [self.sums[i] for i in range(len(self.sums))]


class ShardedSums:
    """The warm vectors of L sharded layers, and the sums that advance them.

    Every call of `measured` makes the same collectives on every process: one per group. A process
    without pieces adds zeros. One that fails adds NaN and says so: then no process has a sigma.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        device: torch.device,
        roll_call: RollCall | None,
        gradients: GradientSums | None,
    ) -> None:
        self.layers, self._device, self._roll_call = tuple(layers), device, roll_call
        self._gradients = gradients
        self._rest = {} if gradients is None else gradients.sizes
        matrices = [layer.shard() for layer in layers]
        across = [x.across for x in matrices if x.across is not None]
        others = [] if gradients is None else gradients.groups
        self._groups = Groups([*(x.group for x in matrices), *across, *others], roll_call)
        self.power = ShardedPower(
            [(x.shape[x.axis], x.small) for x in matrices], device=device, block=BLOCK
        )
        self.agreed = [
            Agreed(
                members=members(x.group),
                across=None if x.across is None else members(x.across),
                axis=x.axis,
                torn=x.torn,
                columns=columns(x),
                form=Form(*self.power.block_shape(i), len(x.torn)),
                proof=proof_size(x),
            )
            for i, x in enumerate(matrices)
        ]
        self._agreement = Agreement(self.agreed, self._rest)
        self._processes = to_device(
            [float(len(x.members)) for x in self.agreed], device, torch.float64
        )
        self._said: set[str] = set()
        self._noted: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._unsound = 0  # calls in a row that measured nothing
        self._ended = False
        self._interrupt: BaseException | None = None  # raised once the others have their sums

    @signals_wait()
    def together(
        self, what: str, calls: Sequence[Sequence[int]], make: Callable[[], T]
    ) -> T | None:
        """Return what ``make`` returns once all processes have come to make the same sums, or None.

        ``calls`` are the ``proofs`` of each call of `measured` in it; they and ``what`` must be
        equal in all processes. Where they are not, or one does not come, there is no sum any more,
        in no process. Whatever ``make`` raises, the others get every sum that was agreed on.
        """
        if not self._begun(what, calls):
            return None
        self._groups.owe(map(self._agreement.owed, calls), self._device)
        found = None
        try:
            found = make()
            if self._interrupt is not None:
                raise self._interrupt
        except SumLost as error:
            self._end(str(error))
        finally:
            self._interrupt = None
            self._settle()
        return found

    def _begun(self, what: str, calls: Sequence[Sequence[int]]) -> bool:
        if self.over:
            return False
        if self._roll_call is not None:
            told: dict[Members, list[str]] = {group: [what] for group in self._rest}
            for i, (x, layer) in enumerate(zip(self.agreed, self.layers, strict=True)):
                proven = [k for k, proofs in enumerate(calls) if i in proofs]
                for group in (x.members, *(() if x.across is None else (x.across,))):
                    told.setdefault(group, [what]).append(f"{layer.name} {proven}")
            texts = {group: "\n".join(each) for group, each in told.items()}
            if (why := self._roll_call.answered(texts)) is not None:
                self._end(why)
        return not self._ended

    def _end(self, why: str) -> None:
        self._ended = True
        self._say(f"{why}: sharded layers are not measured any more", once="ended")

    def _settle(self) -> None:
        """Make the sums that are left of what was agreed on."""
        try:
            self._groups.end()
        except SumLost as error:
            self._end(str(error))

    def close(self) -> None:
        """Let the other processes go on without this one."""
        if not self._ended and self._roll_call is not None:
            self._roll_call.leave()
        self._ended = True

    @torch.no_grad()
    def measured(
        self,
        codes: Callable[[], Tensor],
        proofs: Sequence[int],
        more: Callable[[], Sequence[Extras]] | None = None,
        *,
        absent: bool = False,
    ) -> Found:
        """Make one iteration, with the sums for a certificate of the layers in ``proofs``.

        ``codes`` (int64 [2, L]): a layer is measured only where they are equal on all processes, as
        its vectors must be. ``absent``: give no share of any layer. Where this process fails before
        its last sum, it goes on as the others do, which get no number from it. An error that is no
        Exception, such as an interrupt, is raised by `together` after that.
        """
        counts, attempt = self.power.counts(), _Attempt()
        try:
            self._attempt(attempt, codes(), proofs, more, absent=absent)
        except SumLost:
            raise
        except BaseException as error:
            if not self._groups.end_round():
                raise  # the others have their sums
            if not isinstance(error, Exception):
                self._interrupt = self._interrupt or error
            self._say(f"sharded layers are not measured at such a step: {error!r}")
            return self._without(attempt, counts, self._agreement.forms(proofs))
        self._groups.end_round()
        total = (
            None if self._gradients is None else self._gradients.total(attempt.rest, attempt.all)
        )
        return self._concluded(attempt, total)

    def _without(self, attempt: _Attempt, counts: Sequence[int], forms: Sequence[Form]) -> Found:
        """Return what the other processes find where this one gives no number any more."""
        size = sum(form.size for form in forms)
        lost = unpacked(torch.full((size,), torch.nan, device=self._device), forms)
        for i, sums in enumerate(lost):
            attempt.sums.setdefault(i, sums)
        if not attempt.some:
            attempt.matrices = [None] * len(forms)
        return self._concluded(attempt, None, lost_from=None if attempt.some else counts)

    def _concluded(
        self, attempt: _Attempt, total: Tensor | None, lost_from: Sequence[int] | None = None
    ) -> Found:
        """Return what the sums say; ``lost_from``: this process has given no number to any."""
        summed = attempt.all
        same = alike(torch.stack([x.values["agreed"] for x in summed]), self._processes)
        sound = same & (torch.cat([x.values["lost"] for x in summed]) == 0)
        self._note(sound)
        if lost_from is None:
            shares = [x.share for x in summed]
            estimates = self.power.finish(attempt.vectors, shares, sound, same)
        else:
            estimates = self.power.lost(lost_from)
        return Found(estimates, summed, sound, attempt.matrices, total)

    def _attempt(
        self,
        attempt: _Attempt,
        codes: Tensor,
        proofs: Sequence[int],
        more: Callable[[], Sequence[Extras]] | None,
        *,
        absent: bool,
    ) -> None:
        """Make the sums of a measurement."""
        forms = self._agreement.forms(proofs)
        numbers = (self.power.agreed() + codes.T).remainder(61).float()
        vectors = [self.power.explored(i) for i in range(len(self.layers))]
        matrices = [None if absent else self._looked_up(i) for i in range(len(self.layers))]
        attempt.vectors, attempt.matrices = vectors, matrices
        ahead = [self._ahead(i, matrices[i], v) for i, v in enumerate(vectors)]
        heads, squares = agreed(numbers).unbind(), self._squares(matrices, more, absent=absent)
        attempt.rest = rest = self._gradients_here(known=more is not None and not absent)
        dtype = dtype_of(proofs)
        given, lost = torch.stack([numbers.new_zeros(1), numbers.new_ones(1)]).unbind()

        def own(i: int) -> tuple[LayerSums, Tensor]:
            head = {"lost": given, "agreed": heads[i]}
            found = self._record(i, matrices[i], vectors[i], ahead[i], forms[i], head, squares[i])
            if found is None:
                return LayerSums.lost(forms[i], {**head, "lost": lost}), lost[0]
            return found

        for stage in self._agreement.stages():
            parts: dict[Members, list[Tensor]] = {}
            for group, (first, whole, last) in stage.items():
                records, largest = zip(*map(own, whole), strict=True) if whole else ((), ())
                rows = bands(torch.stack(largest)).unbind() if whole else ()
                parts[group] = [ahead[i].reshape(-1).to(dtype) for i in first]
                for i, found, row in zip(whole, records, rows, strict=True):
                    with_bands = LayerSums({"bands": row, **found.values})
                    parts[group] += with_bands.packed(forms[i], dtype)
                if last:
                    parts[group].append(rest[group].to(dtype))
            totals = {group: torch.cat(each) for group, each in parts.items()}
            self._groups.sum_(totals)
            attempt.some = True
            for group, (first, whole, last) in stage.items():
                sizes = [ahead[i].numel() for i in first]
                sizes += [sum(forms[i].size for i in whole), self._rest[group] if last else 0]
                *fronts, records_sum, rest_sum = torch.split(totals[group], sizes)
                if last:
                    rest[group] = rest_sum
                for i, front in zip(first, fronts, strict=True):
                    ahead[i] = front.view(ahead[i].shape).float()
                attempt.sums.update(
                    zip(whole, unpacked(records_sum, [forms[i] for i in whole]), strict=True)
                )

    def _gradients_here(self, *, known: bool) -> dict[Members, Tensor]:
        if self._gradients is None:
            return {}
        return self._gradients.shares(self.layers if known else None, self._device)

    def _record(
        self,
        i: int,
        matrix: ShardedMatrix | None,
        v_BN: Tensor,
        ahead: Tensor,
        form: Form,
        head: Mapping[str, Tensor],
        squares: Tensor | None,
    ) -> tuple[LayerSums, Tensor] | None:
        """Return this process's record of a layer and the largest entry of U; None if it fails."""
        if matrix is None or squares is None:
            return None
        across = self.agreed[i].across
        first = across is None or across[0] == dist.get_rank()
        try:
            share = self.power.share(matrix, v_BN, ahead, first=first)
            return record(matrix, share, form, head, squares), share.largest
        except Exception as error:  # an outer edge, as that of the callback: the others wait
            self._say(f"{self.layers[i].name} is not measured: {error}")
            return None

    def _squares(
        self,
        matrices: Sequence[ShardedMatrix | None],
        more: Callable[[], Sequence[Extras]] | None,
        *,
        absent: bool,
    ) -> Sequence[Tensor | None]:
        """Return the shares of the sums of squares of each layer; None where there is none."""
        nothing = [None] * len(self.layers)
        if absent:
            return nothing
        try:
            extras = [Extras()] * len(self.layers) if more is None else more()
            return squares(matrices, extras, self._device).unbind()
        except Exception as error:  # an outer edge, as above
            self._say(f"sharded layers are not measured: {error!r}")
            return nothing

    def _looked_up(self, i: int) -> ShardedMatrix | None:
        """Return the pieces of a layer, None if they are not as they were agreed to be."""
        try:
            found = self.layers[i].shard()
            if self.agreed[i].fits(found):
                return found
            self._say(f"{self.layers[i].name} was sharded anew: not covered any more")
        except Exception as error:  # an outer edge, as above
            self._say(f"not measured any more: {error}")
        return None

    def _ahead(self, i: int, matrix: ShardedMatrix | None, v_BN: Tensor) -> Tensor:
        """Return W V of the rows that lie here, (b, columns); NaN where that fails."""
        if matrix is not None:
            try:
                return self.power.ahead(i, matrix, v_BN)
            except Exception as error:  # an outer edge, as above
                self._say(f"{self.layers[i].name} is not measured: {error}")
        return torch.full((len(v_BN), self.agreed[i].columns), torch.nan, device=self._device)

    def _note(self, sound: Tensor) -> None:
        """Keep which layers were measured, bool [L], for `over` and for a sentence."""
        if not reading_is_free(self._device):
            sound = sound.to("cpu", non_blocking=True)
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
        self._noted.append((sound, event))

    @property
    def over(self) -> bool:
        """Return whether no layer was measured in `MOST_UNSOUND` calls in a row, or can be.

        Then the processes do not make the same steps, and there must be no further call: one would
        wait for another in vain. It is the same call for all of them, because it follows from sums.
        """
        if self._ended:
            return True
        if not joined():
            self._say("the process group is gone: sharded layers are not measured any more")
            return True
        while len(self._noted) > (0 if reading_is_free(self._device) else LAG):
            sound, event = self._noted.popleft()
            if event is not None:
                event.synchronize()  # of a call long ago
            known = sound.tolist()
            self._unsound = 0 if any(known) else self._unsound + 1
            if not all(known):
                lost = [x.name for x, ok in zip(self.layers, known, strict=True) if not ok]
                self._say(
                    "the ranks do not agree, or one gave no share: not measured at such a step: "
                    + ", ".join(lost[:5]),
                    once="lost",
                )
        if self._unsound >= MOST_UNSOUND:
            self._say("the ranks do not make the same steps: sharded layers are not measured")
        return self._unsound >= MOST_UNSOUND

    def _say(self, sentence: str, *, once: str | None = None) -> None:
        if (once or sentence) not in self._said:
            self._said.add(once or sentence)
            log.warning("snc: %s", sentence)
