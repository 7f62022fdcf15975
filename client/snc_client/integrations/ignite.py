"""PyTorch-Ignite's Engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from snc_client.callback import SNCallback
from snc_client.integrations.training_run import WORST_RATIO, TrainingRun


class SNCHandler:
    """``SNCHandler(model, optimizer, threshold="3x init").attach(trainer)``; SNCallback's keywords.

    * `state_dict` belongs into Ignite's ``Checkpoint(to_save={"snc": handler, ...})``; loaded
      before ``trainer.run``, it continues the same run.
    * ``engine.state.output`` is reported where it is a number, as ``loss``, or a mapping of
      numbers. ``snc/worst_ratio`` is in ``engine.state.metrics``.
    * The run's config is the engine's epochs. The service's command ``stop`` terminates the
      engine. A breach under the action ``stop`` leaves ``run()`` as ThresholdBreached. Any
      exception ends the run as failed and is raised again.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, **keywords: Any) -> None:
        self._model = model
        self._optimizer = optimizer
        self._run = TrainingRun(keywords)

    @property
    def callback(self) -> SNCallback | None:
        """Return the SNCallback inside; None before the training has begun."""
        return self._run.callback

    def attach(self, engine: Engine) -> SNCHandler:
        """Join the events of the training engine; return the handler itself."""
        engine.add_event_handler(Events.STARTED, self._started)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iterated)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._raised)
        engine.add_event_handler(Events.TERMINATE | Events.COMPLETED, self._completed)
        return self

    def state_dict(self) -> dict[str, Any]:
        """Return the state that Ignite's Checkpoint writes."""
        return self._run.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the state that Ignite's Checkpoint has read."""
        self._run.load_state_dict(state)

    def _started(self, engine: Engine) -> None:
        limits = {name: getattr(engine.state, name) for name in ("max_epochs", "epoch_length")}
        self._run.begin(self._model, self._optimizer, limits)

    def _iterated(self, engine: Engine) -> None:
        output = engine.state.output
        self._run.report(output if isinstance(output, Mapping) else {"loss": output})
        if (worst := self._run.worst_ratio()) is not None:
            engine.state.metrics[WORST_RATIO] = worst
        if "stop" in self._run.take_commands():
            engine.terminate()

    def _raised(self, _: Engine, error: BaseException) -> None:
        self._run.end(error)
        raise error

    def _completed(self, _: Engine) -> None:
        self._run.end()
