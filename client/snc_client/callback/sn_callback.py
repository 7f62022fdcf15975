"""SNCallback: the object that a training job uses. It joins the parts of the client."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from snc_client.callback import arguments
from snc_client.callback.collector import RowCollector
from snc_client.callback.detached import DetachedCallback
from snc_client.callback.ending import CLOSE_SECONDS, Ending, failed_by
from snc_client.callback.guard.settings import GuardSettings
from snc_client.callback.guard.sharded_guard import guard_over
from snc_client.callback.model.master_weights import Masters
from snc_client.callback.model.named_models import as_one
from snc_client.callback.model.optimizer_steps import OptimizerSteps
from snc_client.callback.model.optimizers import unwrapped_all
from snc_client.callback.model.ownership import Ownership
from snc_client.callback.model_follower import ModelFollower
from snc_client.callback.monitor.layer_monitor import LayerMonitor
from snc_client.callback.monitor.norms import DEFAULT_SIGNALS, NormSignals
from snc_client.callback.monitor.sharded.start import ShardedStart
from snc_client.callback.optimizer_hooks import OptimizerHooks
from snc_client.callback.outer_edge import OuterEdge
from snc_client.callback.policy_in_force import PolicyInForce
from snc_client.callback.readback.latest import Latest
from snc_client.callback.schedule.overhead import Overhead
from snc_client.callback.schedule.threshold_schedule import Schedule, ThresholdFactor
from snc_client.callback.service.commands import OnCommand
from snc_client.callback.service.reporter import Reporter, weakly
from snc_client.callback.step_sequence import StepSequence
from snc_client.layers import Coverage, Logits, find_layers
from snc_client.one_forward import Example
from snc_client.policy import make_policy
from snc_service.wire import Action, Command, Policy

log = logging.getLogger("snc")

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

    ``model``: a module, or {prefix: module} for several in one run, such as a GAN. Another callback
    on the same model takes the place of the one before.

    What writes the weights
        ``optimizer`` (None): measures after each of its steps, so that the loop needs no call of
        `step`. May be wrapped, or a list: the first one counts the steps, and a layer is held
        after the step of its own optimizer. None: call `step` after each optimizer step.
        ``masters`` (None): {parameter or its name: the float32 tensor that the optimizer steps},
        for mixed precision, if `Masters` does not find them in ``optimizer``.
        ``guard`` (False): True or `GuardSettings` undo ruinous steps. Costs 5 copies with AdamW.

    What is held
        ``threshold`` (None: no limit): a number, ``"3x init"``, ``"3x rms"``, ``"auto"`` (times
        init, by kind of layer), or {glob: one of these or None}. In units of sigma.
        ``action`` (``"rescale"``): ``observe``, ``rescale``, ``cap``, ``normalize`` or ``stop``.
        ``policy`` (None): threshold and action per layer, as on the wire; instead of ``threshold``.
        With neither, nothing is written unless the service sends a policy.
        ``schedule`` (None): step -> factor of all thresholds, such as ``warm_up(1000, start=3.0)``.

    What counts as a layer; see `snc_client.layers.find_layers`
        ``conv`` (``"reshape"``): ``"operator"`` measures convolutions as linear maps, at more cost.
        ``grids`` (None: 16 per dimension): {module: input size} for ``"operator"``. Or
        ``example_input`` (None): a model's input, whose forward pass meets the sizes before the
        training. The norm grows with them. The signal ``lipschitz`` needs it too.
        ``split`` (None): {glob: parts} of fused weights. Known classes are cut without it.
        ``maps`` (None): {glob: ``"gain"`` or ``"rows"``}, of normalisations and embeddings.
        ``logits`` (None): {glob: heads} or ``"auto"`` measures attention logits, head by head, and
        so does a threshold of ``"*.attn:logits"`` where the class is known.

    When it is measured, and how exactly
        ``every`` (1 step): measure and act once in so many steps. Above 1 layers grow in between.
        ``certify_every`` (100): certify each layer once in so many measurements. None: never.
        ``strict`` (False): prove a bound of each layer to be held at every measurement, by a
        certificate, or by an earlier one plus the distance moved since (Weyl). Copies its weights.
        ``idle_every`` (None: 5 measurements on a CPU; 1 elsewhere, and with ``guard``, ``every`` or
        update_norm): measure a layer once in so many, convolutions as operators more rarely, while
        it cannot reach 0.9 of its threshold at twice its recent growth, or has none. Not where
        sigma moves by 3 % a step, or the gradient vanishes. Set 1 to see all layers in every row.
        ``max_overhead`` (None): a share of the step time in (0, 1), such as 0.01. Idle layers are
        measured up to 50 steps apart to keep to it; their sigma may be 1 % off then.
        ``signals`` (loss, lr, times, gradient and Frobenius norm, stable rank): what else to
        report, see `callback.monitor.norms.NormSignals`. Leave out what the job can do without.

    Where it is reported
        ``url`` (None: SNC_URL, else nothing is sent), ``token`` (None: SNC_TOKEN) of the service.
        ``run`` (None: SNC_RUN, else drawn): the id of the run. Set it to continue a run.
        ``project`` (None: SNC_PROJECT), ``name`` (None) and ``config`` (None; JSON) of the run.
        ``profile`` (None): ``"moving_target"`` of the loss, see docs/rules.md.
        ``spool`` (None): a local folder that keeps rows until the service has stored them.
        ``on_command`` (None: logged): called with each `Command`; its exceptions reach the loop.

    Steps are counted on the host, from 1; step 0 is a measurement of the untouched weights. `step`
    never waits for the device or the network. It raises `ThresholdBreached` and, with ``guard``,
    `GuardStopped`; other failures are counted in ``errors`` and logged once. What a signal handler
    raises meanwhile, such as torch's for a dead loader worker, reaches the loop. A value measured
    at one step reaches the host (``latest``, the service, ``stop``) at the next call, or later.

    After a measured step the spectral norm of a rescaled layer is at most its threshold, up to the
    rounding of the product, if the layer had a certificate at that step or, with ``strict``, a
    bound. Otherwise sigma plus a margin of at least 1e-3, which grows with the residual, replaces
    the bound: evidence, no proof. The model gets no attribute, hook, buffer or state entry.

    Under torch.distributed every rank measures and acts alike on its replica. Rank 0 reports, and
    pipeline stages their own layers. Policies and commands of the service are obeyed at the same
    step on all ranks, within 20 steps, if each has a callback. ``max_overhead`` must be None then.
    Sharded weights are measured and held by all ranks that hold a part, see docs/layers.md.

    Raises ValueError for a model without a matrix and for arguments that contradict each other.
    """

    def __init__(
        self,
        model: nn.Module | Mapping[str, nn.Module],
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
        example_input: Example | Mapping[str, Example] | None = None,
        split: Mapping[str, str | Mapping[str, int]] | None = None,
        maps: Mapping[str, str] | None = None,
        logits: Logits | None = None,
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
        profile: Literal["moving_target"] | None = None,
        spool: str | os.PathLike[str] | None = None,
        on_command: OnCommand | None = None,
    ) -> None:
        arguments.check_counts(every=every, certify_every=certify_every, idle_every=idle_every)
        self._optimizers = unwrapped_all(optimizer)
        first = self._optimizers[0] if self._optimizers else None
        arguments.check_together(self._optimizers, masters, guard)
        arguments.check_cost(every, idle_every, max_overhead, guard)
        grids, bounded = arguments.example(model, conv, grids, example_input, signals)
        model = as_one(model)
        chosen = make_policy(threshold, action, policy)
        logits = arguments.with_logits(logits, chosen)
        find = partial(find_layers, conv=conv, grids=grids, split=split, maps=maps, logits=logits)
        known_masters = Masters(model, masters, self._optimizers)
        ownership = Ownership(model, self._optimizers, known_masters.of)
        in_force = PolicyInForce(chosen, ownership)
        norms = NormSignals(signals, model, first, guarded=bool(guard))
        norms.declared = arguments.declared(profile)
        alike = {"certify_every": certify_every, "strict": strict, "every": every, "also": signals}
        alike["guard"] = repr(GuardSettings() if guard is True else guard)
        start = ShardedStart(find)
        coverage, policies, sharded = start.met(model, in_force.by_layer_strictly, norms, alike)
        self._attempt = 0
        self._edge = OuterEdge()
        self._overhead = Overhead()
        self._early: dict[str, Any] = {}  # scalars given before their measurement
        self._guard = guard_over(model, coverage.layers, first, guard, sharded=sharded is not None)
        full = guard or (idle_every is None and (every > 1 or norms.steps_of is not None))
        self._monitor = monitor = LayerMonitor(
            coverage.layers,
            policies,
            certify_every=certify_every,
            strict=strict,
            max_overhead=max_overhead,
            signals=norms,
            guard=self._guard,
            masters=known_masters,
            idle_every=1 if full else idle_every,
            sharded=sharded,
        )
        monitor.register(step=0)
        self._connection = reporter = Reporter(
            url,
            token=token,
            run=run,
            project=project,
            layers=coverage.layers,
            gains=norms.gains,
            metrics=monitor.metrics,
            on_command=on_command,
            name=name,
            config=config,
            spool=spool,
            policy=chosen if chosen.entries else None,
            on_policy=weakly(in_force.prepare),
        )
        collector = RowCollector(monitor, self._guard, norms, self._overhead, reporter)
        self._optimizer_steps = steps = OptimizerSteps(model, self._optimizers)
        self._follower = ModelFollower(
            model, coverage, start.find, monitor, in_force, norms, self._guard, steps, reporter
        )
        self._steps = StepSequence(
            every,
            monitor,
            collector,
            self._follower,
            in_force,
            ownership,
            ThresholdFactor(schedule),
            norms,
            bounded,
            self._overhead,
            reporter,
            steps,
        )
        self._hooks = OptimizerHooks(self._optimizers, self._stepped)
        ends = (self._steps.end, steps.close, self._hooks.remove)
        self._ending = Ending(model, ends, monitor, collector, reporter)
        log.info("snc: %s; %s", coverage.summary, reporter.destination)

    def step(self, loss: float | Tensor | None = None, lr: Any = None, **scalars: Any) -> None:
        """Count an optimizer step; measure, act and report when it is due.

        ``loss``, ``lr`` and other scalars may be numbers or tensors with one element: a tensor
        is copied to the host together with the measurement. With ``optimizer=`` the optimizer's
        step has measured already, and a call only adds its scalars to the row of that step.

        Raises `ThresholdBreached` when a breach under the action ``stop`` has reached the host:
        at the call after the one that measured it, because nothing here waits.
        """
        given = {"loss": loss, "lr": lr, **scalars}
        with self._edge:
            moved = self._optimizer_steps.moved()
            if moved and not self._hooks:
                early, self._early = self._early, {}
                self._steps.advance({**early, **{k: v for k, v in given.items() if v is not None}})
                self._optimizer_steps.note()
            elif not (moved and self._monitor.rows.report(self._steps.step, given)):
                self._early.update(
                    (k, v.detach() if isinstance(v, Tensor) else v) for k, v in given.items()
                )
        if not self._hooks:
            self._connection.obey()

    def take_commands(self) -> list[Command]:
        """Return the waiting commands, oldest first; ``on_command`` is not called for them.

        To pause: ``while "resume" not in [c.action for c in callback.take_commands()]:
        sleep(1)``.
        """
        return self._connection.take_commands()

    @property
    def attempt(self) -> int:
        """Return how often the steps of the run went back; the service's count once it is known."""
        return max(self._attempt, self._connection.attempt)

    @property
    def errors(self) -> int:
        """Return how many steps failed inside the callback, and were not measured."""
        return self._edge.errors

    @property
    def layers(self) -> Coverage:
        """Return the layers that are measured now, and what is left out, with the reason."""
        return self._follower.coverage

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

        A layer that is gone is listed with the reason and not measured. A new one, and one of
        another shape, is measured, reported, and held if the policy matches it, by a reference of
        its own. A layer that is frozen or computed from others now is not written.

        Each measurement does this by itself when a module or parameter was added, removed,
        exchanged, resized or frozen, or when a layer cannot be found.
        """
        return self._follower.rescan(self._steps.step)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a job to resume: step, attempt, reference sigmas, warm blocks.

        Plain containers, numbers and CPU tensors (16 floats per row of a weight's small side):
        ``torch.load(weights_only=True)`` reads it. Waits for the device: call it where the
        model's own checkpoint is saved.
        """
        return {
            "version": STATE_VERSION,
            "step": self._steps.step,
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
        rewound = step < self._steps.step
        self._attempt = max(self._attempt, attempt) + 1 if rewound else attempt
        self._steps.step = step

    def close(self, timeout: float = CLOSE_SECONDS, *, failed: bool = False) -> None:
        """Remove the hooks, deliver all rows and finish the run, in at most ``timeout`` seconds.

        ``failed``: the run ends as failed. A second call does nothing. A breach in the last
        measurement is in ``latest`` and on the service, and raises nothing. Without a call this
        happens at the exit of the interpreter, and when the callback is garbage-collected.
        """
        self._ending.end(timeout, "failed" if failed else "finished")
        if self.errors:
            log.warning("snc: %d steps were not measured", self.errors)

    def __enter__(self) -> SNCallback:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(failed=failed_by(error))

    def _stepped(self, place: int) -> None:
        if place:
            with self._edge:
                self._steps.hold(place)
            return
        early, self._early = self._early, {}
        self._optimizer_steps.note_step()
        with self._edge:
            self._steps.advance(early)
        self._connection.obey()

    def __deepcopy__(self, memo: object) -> DetachedCallback:
        return DetachedCallback()

    def __reduce__(self) -> tuple[type[DetachedCallback], tuple[()]]:
        return DetachedCallback, ()
