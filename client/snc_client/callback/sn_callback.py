"""SNCallback: the object that a training job uses. It joins the parts of the client."""

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
from snc_client.callback.collector import RowCollector
from snc_client.callback.detached import DetachedCallback
from snc_client.callback.guard.guard import Guard
from snc_client.callback.guard.settings import GuardSettings, GuardStopped
from snc_client.callback.interruption import is_from_signal_handler
from snc_client.callback.model.learning_rate import learning_rate
from snc_client.callback.model.master_weights import Masters
from snc_client.callback.model.optimizers import outside_graphs, unwrapped_all
from snc_client.callback.model.ownership import Ownership
from snc_client.callback.model.rescan import called, weights
from snc_client.callback.model.unmoved import UnmovedCalls
from snc_client.callback.monitor.layer_monitor import LayerMonitor
from snc_client.callback.monitor.norms import DEFAULT_SIGNALS, NormSignals
from snc_client.callback.policy_in_force import PolicyInForce
from snc_client.callback.readback.latest import Latest, ThresholdBreached
from snc_client.callback.schedule.overhead import Overhead
from snc_client.callback.schedule.threshold_schedule import Schedule, ThresholdFactor
from snc_client.callback.service.commands import OnCommand
from snc_client.callback.service.reporter import Reporter
from snc_client.layers import Coverage, find_layers
from snc_client.policy import make_policy
from snc_service.wire import Action, Command, Policy

log = logging.getLogger("snc")

CLOSE_SECONDS = 5.0
LOOK_EVERY = 100  # measurements between two checks for parameters added or frozen
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

    What writes the weights
        ``optimizer`` (None): measures after each of its steps, so that the loop needs no call of
        `step`. May be wrapped, or a list: the first one counts the steps, and a layer is held
        after the step of its own optimizer. None: call `step` after each optimizer step.
        ``masters`` (None): {parameter or its name: the float32 tensor that the optimizer steps}.
        Set it for mixed precision if `Masters` does not find the masters in ``optimizer``.
        ``guard`` (False): True or `GuardSettings` undo steps that would ruin the training.
        Costs copies of the weights, with AdamW five times their memory.

    What is held
        ``threshold`` (None: no limit): a number, ``"3x init"``, ``"3x rms"``, or {glob: one of
        these or None}. In units of sigma.
        ``action`` (``"rescale"``): ``observe``, ``rescale``, ``cap`` or ``stop``, for layers with
        a threshold. ``cap`` keeps small singular values and costs more at a breach.
        ``policy`` (None): threshold and action per layer, as on the wire; instead of ``threshold``.
        With neither, nothing is written unless the service sends a policy.
        ``schedule`` (None): step -> factor of all thresholds, those of the service included, such
        as ``warm_up(1000, start=3.0)``. Set it where weights must grow early on.

    What counts as a layer; see `snc_client.layers.find_layers`
        ``conv`` (``"reshape"``): ``"operator"`` measures convolutions as linear maps, at more cost.
        ``grids`` (None: 16 per dimension): {module: input size} for ``"operator"``. The norm grows
        with the size: set that of the training's inputs, as `watch_grids(most=...)` collects it.
        ``split`` (None): {glob: parts} of fused weights that hold several matrices.
        ``maps`` (None): {glob: ``"gain"`` or ``"rows"``} for normalisations and embeddings.
        ``logits`` (None): {glob: heads} measures the attention logits of each head.

    When it is measured, and how exactly
        ``every`` (1 step): measure and act once in so many steps. Above 1 layers grow in between.
        ``certify_every`` (100 measurements): certify each layer once in so many. None: never.
        ``strict`` (False): prove a bound of each layer to be rescaled or capped at every
        measurement, by a certificate, or by an earlier one plus the distance moved since (Weyl) if
        that is at most the threshold. Set it where evidence is not enough; copies these weights.
        ``idle_every`` (None: 5 measurements on a CPU; 1 elsewhere, and with ``guard``, ``every`` or
        update_norm): measure a layer once in so many while it cannot reach 0.9 of its threshold at
        twice its recent growth, or has none. Layers whose sigma moves by 3 % a step, or whose
        gradient vanishes, are always measured. Set 1 to see every layer in every row.
        ``max_overhead`` (None): a share of the step time in (0, 1), such as 0.01. Idle layers are
        measured up to 50 steps apart to keep to it; their sigma may be 1 % off then.
        ``signals`` (loss, lr, times, gradient and Frobenius norm, stable rank): what else to
        report, see `callback.monitor.norms.NormSignals`. Leave out what the job can do without.

    Where it is reported
        ``url`` (None: SNC_URL; without that nothing leaves the process): the service.
        ``token`` (None: SNC_TOKEN): the bearer token, where the service asks for one.
        ``run`` (None: SNC_RUN, else drawn): the id of the run. Set it to continue a run.
        ``project`` (None: SNC_PROJECT): the project that the run belongs to.
        ``name`` (None): what people call the run; ``config`` (None): its settings, as JSON.
        ``spool`` (None): a local folder that keeps rows until the service has stored them, even
        after the job has ended. Set it where the service may be unreachable for long.
        ``on_command`` (None: commands are logged): called at a step boundary with each `Command`
        of the service. The loop waits for it, and its exceptions reach the loop.

    Steps are counted on the host, from 1; step 0 is a measurement of the untouched weights. `step`
    never waits for the device or the network. It raises `ThresholdBreached` and, with ``guard``,
    `GuardStopped`; other failures are counted in ``errors`` and logged once. What a signal handler
    raises meanwhile, such as torch's for a dead loader worker, reaches the loop. A value measured
    at one step reaches the host (``latest``, the service, the ``stop`` action) at the next call,
    or later if the device lags behind.

    After a measured step the spectral norm of a rescaled layer is at most its threshold, up to the
    rounding of the product, if the layer had a certificate at that step or, with ``strict``, a
    bound. Otherwise sigma plus a margin, the larger of 1e-3 and (residual / sigma)^2, replaces the
    bound: that is evidence, no proof. The model gets no attribute, hook, buffer or state entry.

    Under torch.distributed every rank measures and acts alike on its replica and rank 0 reports.
    ``max_overhead`` must be None then, and a policy of the service is not applied. Sharded weights
    are skipped, with the reason.

    Raises ValueError for a model without a matrix and for arguments that contradict each other.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        masters: Mapping[str | Tensor, Tensor] | None = None,
        guard: bool | GuardSettings = False,
        threshold: float | str | Mapping[str, float | str | None] | None = None,
        action: Action = "rescale",
        policy: Policy | Mapping[str, Any] | None = None,
        schedule: Schedule | None = None,
        conv: Literal["reshape", "operator"] = "reshape",
        grids: Mapping[str, Sequence[int]] | None = None,
        split: Mapping[str, str | Mapping[str, int]] | None = None,
        maps: Mapping[str, str] | None = None,
        logits: Mapping[str, int | tuple[int, int]] | None = None,
        every: int = 1,
        certify_every: int | None = 100,
        strict: bool = False,
        idle_every: int | None = None,
        max_overhead: float | None = None,
        signals: Sequence[str] = DEFAULT_SIGNALS,
        url: str | None = None,
        token: str | None = None,
        run: str | None = None,
        project: str | None = None,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        spool: str | os.PathLike[str] | None = None,
        on_command: OnCommand | None = None,
    ) -> None:
        check_counts(every=every, certify_every=certify_every, idle_every=idle_every)
        self._optimizers = unwrapped_all(optimizer)
        first = self._optimizers[0] if self._optimizers else None
        check_together(self._optimizers, masters, guard)
        check_cost(every, idle_every, max_overhead, guard)
        self._model = model
        self._find = partial(
            find_layers, conv=conv, grids=grids, split=split, maps=maps, logits=logits
        )
        self.layers: Coverage = self._find(model)
        self._weights, self._looked = weights(model), 0
        chosen = make_policy(threshold, action, policy)
        self._masters = Masters(model, masters, self._optimizers)
        self._ownership = Ownership(model, self._optimizers, self._masters.of)
        self._policy = PolicyInForce(chosen, self._ownership)
        policies = self._policy.by_layer_strictly(self.layers.layers)
        self.attempt = 0
        self.errors = 0
        self._step = 0
        self._every = every
        self._factor = ThresholdFactor(schedule)
        self._strict = strict
        self._closed = False
        self._overhead = Overhead()
        self._early: dict[str, Any] = {}  # scalars given before their measurement
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
        self._collector = RowCollector(
            self._monitor, self._guard, self._signals, self._overhead, self._connection
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
        is copied to the host together with the measurement. With ``optimizer=`` the optimizer's
        step has measured already, and a call only adds its scalars to the row of that step.

        Raises `ThresholdBreached` when a breach under the action ``stop`` has reached the host:
        at the call after the one that measured it, because nothing here waits.
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
        """Return the waiting commands, oldest first; ``on_command`` is not called for them.

        To pause: ``while "resume" not in [c.action for c in callback.take_commands()]:
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
        """Return how many values were lost because memory was full or no service answered."""
        return self._connection.dropped_values(self._monitor.rows.lost, len(self._monitor.metrics))

    def rescan(self) -> Coverage:
        """Find the layers of the model again, log what has changed and return ``layers``.

        A layer that is gone or has another shape is listed with the reason and not measured. A new
        layer is measured, and held if the policy matches it; it is reported only after the job
        starts again, because the rows of a run keep the layers of its start. A layer that is frozen
        or computed from others now is not written.

        The next step does this by itself when a layer cannot be found, and within 100 measurements
        when a parameter was added, removed or frozen. Raises ValueError for a model
        without a matrix.
        """
        found = self._find(self._model, all_must_match=False)
        roll = called(self._monitor.layers, found, self._step)
        self.layers, self._weights = roll.coverage, weights(self._model)
        policies = self._policy.by_layer(roll.layers)
        self._signals.relist(self._model)
        if self._guard is not None:
            self._guard.relist(self._model, roll.layers)
        with torch.no_grad():
            self._monitor.relist(roll.layers, policies, step=self._step)
        for remark in roll.remarks:
            log.warning("snc: %s", remark)
        return self.layers

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a job to resume: step, attempt, reference sigmas, warm blocks.

        Plain containers, numbers and CPU tensors (16 floats per row of a weight's small side):
        ``torch.load(weights_only=True)`` reads it. Waits for the device: call it where the
        model's own checkpoint is saved.
        """
        return {
            "version": STATE_VERSION,
            "step": self._step,
            "attempt": self.attempt,
            "layers": self._monitor.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Layers missing from ``state`` start afresh.

        A ``state`` of an earlier step than the current one begins the next attempt: later rows stay
        on the service under the old attempt. Raises ValueError for a state of another version.
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
        """Remove the hooks, deliver all rows and finish the run, in at most ``timeout`` seconds.

        A second call does nothing. A breach in the last measurement is in ``latest`` and on the
        service, and raises nothing.
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
            # Before the first counted step there is no row that these values belong to.
            self._monitor.hold(self._step or -1, layers)
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
        return self._collector.collect()

    def _follow_model(self) -> None:
        """Rescan if a layer was not found, or if the parameters of the model have changed."""
        missed = self._monitor.missing - self._known_missing
        self._looked += 1
        if not missed and (self._looked % LOOK_EVERY or weights(self._model) == self._weights):
            return
        self._known_missing = self._monitor.missing
        self._weights = weights(self._model)
        try:
            self.rescan()
        except ValueError as error:
            log.warning("snc: changes of the model are not followed: %s", error)

    def _take_policy(self) -> None:
        taken = self._connection.take_policy()
        if taken is None:
            return
        version, policy = taken
        self._policy.replace(version, policy, self._monitor, step=self._step, strict=self._strict)

    @contextmanager
    def _outer_edge(self) -> Iterator[None]:
        """Count and log exceptions, except those that stop the training on purpose.

        An exception of a signal handler is the training's own, and reaches it.
        """
        try:
            yield
        except (ThresholdBreached, GuardStopped):
            raise
        except Exception as error:
            self.errors += 1
            if is_from_signal_handler(error):
                raise
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
            self._collector.drain(timeout / 2)
        self._connection.close(max(deadline - time.monotonic(), 0.0), state)
        if self.errors:
            log.warning("snc: %d steps were not measured", self.errors)


def _without_graph(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
