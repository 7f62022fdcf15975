"""SNCallback: what a training job holds in its hands. It joins the parts and lets nothing out."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snc_client.callback.arguments import check_cost, check_counts, check_together
from snc_client.callback.detached import DetachedCallback
from snc_client.callback.guard.guard import Guard, furthest
from snc_client.callback.guard.settings import GuardSettings, GuardStopped
from snc_client.callback.model.learning_rate import learning_rate
from snc_client.callback.model.master_weights import Masters
from snc_client.callback.model.optimizers import outside_graphs, unwrapped_all
from snc_client.callback.model.ownership import Ownership
from snc_client.callback.model.rescan import called, weights
from snc_client.callback.model.unmoved import UnmovedCalls
from snc_client.callback.monitor.layer_monitor import LayerMonitor
from snc_client.callback.monitor.norms import DEFAULT_SIGNALS, NormSignals
from snc_client.callback.readback.latest import Latest, ThresholdBreached
from snc_client.callback.schedule.overhead import Overhead
from snc_client.callback.schedule.threshold_schedule import Schedule, ThresholdFactor
from snc_client.callback.service.commands import OnCommand
from snc_client.callback.service.reporter import Reporter
from snc_client.layers import Coverage, find_layers
from snc_client.policy import make_policy, resolve
from snc_service.wire import Command, Policy

log = logging.getLogger("snc")

CLOSE_SECONDS = 5.0
LOOK_EVERY = 100  # measurements between two looks for weights that came or were frozen
STATE_VERSION = 1


class SNCallback:
    """Measure sigma of every layer of ``model`` after each optimizer step, and act on it.

    ::

        callback = SNCallback(model, threshold="3x init", url="http://127.0.0.1:8470")
        for batch in loader:
            ...
            optimizer.step()
            callback.step(loss=loss)
        callback.close()

    * ``optimizer``: its step does what `step` does; no line in the loop is needed. It may be
      wrapped, or a list: then the first one counts the steps, and each layer is held after the step
      of its own optimizer. Layers that none of them steps are measured, not held, and named once.
    * ``threshold``: a number, ``"3x init"``, ``"3x rms"`` or {glob: one of these, or None}.
    * ``action``: ``observe``, ``rescale``, ``cap`` or ``stop``, for the layers with a threshold.
    * ``policy``: both of them per layer, as on the wire; instead of ``threshold``. With neither,
      nothing is ever written, unless a policy comes from the service.
    * ``url``: the service; None: SNC_URL, and without that nothing leaves the process. ``token``,
      ``run``, ``project`` likewise: SNC_TOKEN, SNC_RUN, SNC_PROJECT.
    * ``spool``: a local folder that keeps rows until the service has them, also past the job.
    * ``schedule``: step -> factor on all thresholds, such as ``warm_up(1000, start=3.0)``; also on
      those of a policy from the service.
    * ``masters``: {parameter or its name: the tensor that the optimizer steps and that is cast to
      it}, for mixed precision. The master is what is written then, and cast again; at a measurement
      it also takes the parameter's place before. Some are found in ``optimizer``: see `Masters`.
    * ``on_command``: called at a step boundary with each command from the service: ``action``
      (``checkpoint``, ``pause``, ``resume``, ``stop``) and ``reason``. The loop waits for it, and
      what it raises reaches the loop. None: commands are only logged.
    * ``every``: measure and act at every so many steps; above 1, layers may grow in between.
    * ``certify_every``: certify each layer once in so many measurements; None: never.
    * ``strict``: at every measurement, prove a bound of each layer to be rescaled or capped: by a
      certificate, or by an earlier one plus what the weight has moved since (Weyl) as long as that
      is at most the threshold. Keeps a copy of these weights.
    * ``idle_every``: a layer with no threshold, or whose sigma is below 0.9 of it and cannot come
      there at twice its recent growth, is measured once in so many measurements; layers take turns,
      two at least at a time. One whose sigma moves by 3 % a step or whose gradient vanishes does
      not wait. None: 5 on a CPU; 1 elsewhere, with ``guard``, ``every``, update_norm.
    * ``max_overhead``: a share of step time, such as 0.01, that the callback keeps to by measuring
      these layers more seldom (up to every 50 steps: their sigma may err by 1 % then), and nothing
      at all in between. Layers near their threshold are measured always.
    * ``guard``: undo a step that would ruin the training, see `callback.guard.Guard`;
      True, or `GuardSettings`. It keeps copies of the weights, five times their memory with AdamW.
    * ``signals``: what else is measured and reported, see `callback.monitor.norms.NormSignals`.
    * ``conv``, ``split``, ``maps``, ``logits``: see `snc_client.layers.find_layers`.

    The step is counted on the host, from 1; a measurement of the untouched weights is reported as
    step 0. Nothing in `step` waits for the device or the network, and no exception but
    `ThresholdBreached` and, with ``guard``, `GuardStopped` leaves it: others are counted in
    ``errors`` and logged once. Because nothing waits, what was measured at one step reaches the
    host (``latest``, the service, the ``stop`` action) at the next call, or later where the device
    lags.

    What is held: after a measured step a rescaled layer's spectral norm is at most its threshold,
    up to the rounding of the product, where it had a certificate at that step, or ``strict`` a
    bound. Elsewhere sigma with a margin, 1e-3 or (residual / sigma)^2 if that is more, takes the
    bound's place: evidence, no proof. The model gets no attribute, hook, buffer or state-dict
    entry.

    Where torch.distributed runs, every rank measures and acts alike on its replica and rank 0
    reports; a policy from the service is not applied then, and ``max_overhead`` must stay None,
    because clocks differ between ranks. Sharded weights are skipped, with the reason.

    Raises ValueError for a model without a matrix and for arguments that make no sense.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        threshold: float | str | Mapping[str, float | str | None] | None = None,
        action: str = "rescale",
        policy: Policy | Mapping[str, Any] | None = None,
        url: str | None = None,
        token: str | None = None,
        run: str | None = None,
        project: str | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        spool: str | os.PathLike[str] | None = None,
        schedule: Schedule | None = None,
        on_command: OnCommand | None = None,
        masters: Mapping[str | Tensor, Tensor] | None = None,
        every: int = 1,
        certify_every: int | None = 100,
        strict: bool = False,
        conv: Literal["reshape", "operator"] = "reshape",
        split: Mapping[str, str | Mapping[str, int]] | None = None,
        maps: Mapping[str, str] | None = None,
        logits: Mapping[str, int | tuple[int, int]] | None = None,
        guard: bool | GuardSettings = False,
        idle_every: int | None = None,
        max_overhead: float | None = None,
        signals: Sequence[str] = DEFAULT_SIGNALS,
    ) -> None:
        check_counts(every=every, certify_every=certify_every, idle_every=idle_every)
        self._optimizers = unwrapped_all(optimizer)
        first = self._optimizers[0] if self._optimizers else None
        check_together(self._optimizers, masters, guard)
        check_cost(every, idle_every, max_overhead, guard)
        self._model = model
        self._find = partial(find_layers, conv=conv, split=split, maps=maps, logits=logits)
        self.layers: Coverage = self._find(model)
        self._weights, self._looked = weights(model), 0
        self._policy = chosen = make_policy(threshold, action, policy)
        self._masters = Masters(model, masters, first)
        self._ownership = Ownership(self._optimizers, self._masters.of)
        resolved = resolve(chosen, self.layers.layers)
        resolved.require_matched()
        policies = self._ownership.limited(self.layers.layers, resolved.layers)
        self.attempt = 0
        self.errors = 0
        self._step = 0
        self._every = every
        self._factor = ThresholdFactor(schedule)
        self._strict = strict
        self._closed = False
        self._overhead = Overhead()
        self._early: dict[str, Any] = {}  # scalars that came before their measurement
        self._guard: Guard | None = None
        if guard:
            limits = GuardSettings() if guard is True else guard
            self._guard = Guard(model, self.layers.layers, first, limits)
        self._signals = NormSignals(signals, model, first, guarded=self._guard is not None)
        full = guard or (idle_every is None and (every > 1 or self._signals.steps_of is not None))
        self._monitor = LayerMonitor(
            self.layers.layers,
            policies,
            certify_every=certify_every,
            strict=strict,
            max_overhead=max_overhead,
            signals=self._signals,
            guard=self._guard,
            masters=self._masters,
            idle_every=1 if full else idle_every,
        )
        if strict and (names := self._monitor.uncertifiable()):
            raise ValueError(
                f"strict must be False where a layer to be held has no certificate, got True with "
                f"{', '.join(names)}: give these the action observe"
            )
        self._known_missing = self._monitor.missing
        self._monitor.register(step=0)
        self._connection = Reporter(
            url,
            token=token,
            run=run,
            project=project,
            layers=self.layers.layers,
            metrics=self._monitor.metrics,
            on_command=on_command,
            name=name,
            config=config,
            spool=spool,
            policy=chosen if chosen.entries else None,
        )
        self._unmoved = UnmovedCalls()
        # Compiled optimizers must not trace into a hook: it reads counters and writes weights.
        self._hooks = [
            each.register_step_post_hook(outside_graphs(partial(self._hooked, k)))
            for k, each in enumerate(self._optimizers)
        ]
        if len(self._optimizers) > 1:
            kind = type(self._optimizers[0]).__name__
            log.info("snc: the first of %d optimizers, %s, counts steps", len(self._hooks), kind)
        log.info("snc: %s; %s", self.layers.summary, self._connection.destination)

    def step(self, loss: float | Tensor | None = None, lr: Any = None, **scalars: Any) -> None:
        """Count an optimizer step; measure, act and report when it is due.

        ``loss``, ``lr`` and other scalars may be numbers or tensors with one element: a tensor
        rides to the host in the measurement's own copy. With ``optimizer=`` its step has done the
        work already, and a call only adds its scalars to that step's row.

        Raises `ThresholdBreached` when the host learns of a breach under the action ``stop``: at
        the call after the one that measured it, because nothing here waits.
        """
        given = {"loss": loss, "lr": lr, **scalars}
        with self._outer_edge():
            if not self._hooks:
                self._unmoved.look(self._model.parameters())
                self._advance(given)
                self._unmoved.note(self._model.parameters())
            elif not self._monitor.rows.report(self._step, given):
                self._early.update((k, _without_graph(v)) for k, v in given.items())
        if not self._hooks:
            self._connection.obey()

    def take_commands(self) -> list[Command]:
        """Return the commands that wait, oldest first; ``on_command`` is not called for them.

        What a pause may do: ``while "resume" not in [c.action for c in callback.take_commands()]:
        sleep(1)``.
        """
        return self._connection.take_commands()

    @property
    def latest(self) -> Latest:
        """Return the newest measurement that has arrived: layer -> sigma, threshold, scale, ..."""
        return self._monitor.latest

    @property
    def run(self) -> str | None:
        """Return the run's id on the service, None without a service."""
        return self._connection.run

    @property
    def overhead(self) -> float:
        """Return this callback's share of the time between steps; NaN before the second step.

        Host time inside `step`, or the device's time for its work where that is longer.
        """
        return self._overhead.fraction

    @property
    def sent_values(self) -> int:
        """Return how many values the service has acknowledged."""
        return self._connection.sent_values

    @property
    def dropped_values(self) -> int:
        """Return how many values are lost on the way, for want of memory or of a service."""
        return self._connection.dropped_values(self._monitor.rows.lost, len(self._monitor.metrics))

    def rescan(self) -> Coverage:
        """Look which layers the model has now; return ``layers``, and say what has changed.

        A layer that is gone, or of another shape, is listed with the reason and measured no more. A
        new one is measured, and held where the policy speaks of it; the service hears of it only
        when the job starts again, because a run's rows hold the layers it began with. One that was
        frozen or is computed from others now is not written any more.

        A layer that cannot be found makes the next step do this, and so does, within 100
        measurements, any parameter that came, went or was frozen. Raises ValueError for a model
        without a matrix.
        """
        found = self._find(self._model, all_must_match=False)
        roll = called(self._monitor.layers, found, self._step)
        self.layers, self._weights = roll.coverage, weights(self._model)
        resolved = resolve(self._policy, roll.layers)
        policies = self._ownership.limited(roll.layers, resolved.layers)
        self._signals.relist(self._model)
        if self._guard is not None:
            self._guard.relist(self._model, roll.layers)
        with torch.no_grad():
            self._monitor.relist(roll.layers, policies, step=self._step)
        for remark in roll.remarks:
            log.warning("snc: %s", remark)
        return self.layers

    def state_dict(self) -> dict[str, Any]:
        """Return what makes a resumed job continue: step, attempt, reference sigmas, warm blocks.

        Plain containers, numbers and CPU tensors (16 floats per row of a weight's small side):
        ``torch.load(weights_only=True)`` reads it. It waits for the device, so it belongs beside
        the model's own checkpoint.
        """
        return {
            "version": STATE_VERSION,
            "step": self._step,
            "attempt": self.attempt,
            "layers": self._monitor.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Layers that it does not know start afresh.

        Steps that go back start the next attempt: what was measured after them stays on the service
        under the old one. Raises ValueError for a state of another version.
        """
        if state.get("version") != STATE_VERSION:
            raise ValueError(
                f"version of the state must be {STATE_VERSION}, got {state.get('version')!r}"
            )
        self._monitor.forget()
        if self._guard is not None:
            self._guard.reset()
        self._monitor.load_state_dict(state["layers"])
        step, attempt = int(state["step"]), int(state["attempt"])
        self.attempt = max(self.attempt, attempt) + 1 if step < self._step else attempt
        self._step = step

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Take off the hook, deliver what was measured and finish the run, in ``timeout`` seconds.

        The second call does nothing. A breach in the last measurement is in ``latest`` and on the
        service; nobody is left to be stopped by it.
        """
        self._close(timeout, "finished")

    def __enter__(self) -> SNCallback:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close(CLOSE_SECONDS, "failed" if kind else "finished")

    def _hooked(self, place: int, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if place:
            with self._outer_edge():
                self._hold(place)
            return
        early, self._early = self._early, {}
        with self._outer_edge():
            self._advance({"lr": learning_rate(optimizer), **early})
        self._connection.obey()

    def _advance(self, scalars: dict[str, Any]) -> None:
        self._overhead.enter()
        self._step += 1
        if self._closed or self._step % self._every:
            return
        breach = self._collect()
        try:
            self._measure(scalars)
        finally:
            self._overhead.spent(self._overhead.inside())
            if breach is not None:
                raise breach

    def _hold(self, place: int) -> None:
        """Hold the layers of another optimizer than the first, which has just stepped."""
        if self._closed or self._step % self._every:
            return
        began = time.perf_counter()
        if (layers := self._ownership.of(place)).any():
            self._monitor.hold(self._step, layers)
        self._overhead.spent(time.perf_counter() - began)

    def __deepcopy__(self, memo: object) -> DetachedCallback:
        return DetachedCallback()

    def __reduce__(self) -> tuple[type[DetachedCallback], tuple[()]]:
        return DetachedCallback, ()

    def _measure(self, scalars: dict[str, Any]) -> None:
        self._follow_model()
        self._take_policy()
        self._monitor.stretch(self._factor.at(self._step), step=self._step - 1)
        if scalars.get("lr") is None and self._optimizers:
            scalars["lr"] = learning_rate(self._optimizers[0])
        scalars = self._signals.wanted(scalars)
        steps, seconds = self._overhead.since_row()
        if steps:
            scalars["step_seconds"] = seconds / steps
        row = self._monitor.measure(self._step, scalars, self._ownership.others)
        if row is not None:
            self._overhead.row_begins()
            row.num_steps = steps or self._every
            row.host_seconds = self._overhead.inside()

    def _collect(self) -> ThresholdBreached | GuardStopped | None:
        """Hand on the rows that have arrived; return the worst breach of a layer to stop at."""
        breach: ThresholdBreached | GuardStopped | None = None
        names = self._monitor.latest.names
        for pending, row in self._monitor.arrived():
            if self._guard is not None:
                stopped = self._guard.arrived(row.step, pending.scalars, furthest(row, names))
                breach = breach or stopped
            seconds = max(pending.host_seconds, pending.device_seconds)
            self._overhead.spent(seconds - pending.host_seconds)
            pending.scalars["callback_seconds"] = seconds / pending.num_steps
            if "step_seconds" in row.scalars:
                passed = row.scalars["step_seconds"] * pending.num_steps
                self._monitor.cadence.paid(seconds, passed)
            scalars = self._signals.wanted(row.scalars)
            self._connection.put(row.step, row.values, scalars, row.time)
            breach = breach or pending.breach(row, names)
        return breach

    def _follow_model(self) -> None:
        """Rescan where a layer has been missed, or a look at the weights says that one is new."""
        missed = self._monitor.missing - self._known_missing
        self._looked += 1
        if not missed and (self._looked % LOOK_EVERY or weights(self._model) == self._weights):
            return
        self._known_missing = self._monitor.missing
        self._weights = weights(self._model)
        try:
            self.rescan()
        except ValueError as error:
            log.warning("snc: the model is not followed any more: %s", error)

    def _take_policy(self) -> None:
        taken = self._connection.take_policy()
        if taken is None:
            return
        version, policy = taken
        self._policy = policy
        resolved = resolve(policy, self._monitor.layers)
        policies = self._ownership.limited(self._monitor.layers, resolved.layers)
        self._monitor.set_policy(policies, step=self._step - 1)
        log.info("snc: policy version %d is in force from step %d", version, self._step)
        if self._strict and (names := self._monitor.uncertifiable()):
            log.warning("snc: held without a certificate: %s", ", ".join(names))
        if resolved.unmatched:
            log.warning("snc: no layer matches %s", ", ".join(map(repr, resolved.unmatched)))

    @contextmanager
    def _outer_edge(self) -> Iterator[None]:
        """Let nothing of ours reach the training but a breach."""
        try:
            yield
        except (ThresholdBreached, GuardStopped):
            raise
        except Exception:
            self.errors += 1
            if self.errors == 1:
                log.exception("snc: a step was not measured; training goes on, errors are counted")

    def _close(self, timeout: float, state: Literal["finished", "failed"]) -> None:
        if self._closed:
            return
        self._closed = True
        for hook in self._hooks:
            hook.remove()
        self._monitor.close()
        deadline = time.monotonic() + timeout
        with self._outer_edge():
            self._collect()
            while self._monitor.pending and time.monotonic() < deadline - timeout / 2:
                time.sleep(1e-3)
                self._collect()
        self._connection.close(max(deadline - time.monotonic(), 0.0), state)
        if self.errors:
            log.warning("snc: %d steps were not measured", self.errors)


def _without_graph(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
