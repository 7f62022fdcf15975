"""accelerate: a training loop of one's own, prepared by an `Accelerator`."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from snc_client.callback import SNCallback
from snc_client.integrations.training_run import WORST_RATIO, TrainingRun


class AttachedCallback:
    """The result of `attach`; a context manager that ends the run, as failed on an exception.

    SNCallback is built at the first optimizer step, or at the first use of ``callback``, so that
    ``accelerator.load_state`` can name the run to continue before that. The loop obeys the actions
    that ``take_commands()`` returns, such as ``stop`` and ``checkpoint``.
    """

    def __init__(
        self, accelerator: Accelerator, model: nn.Module, optimizer: Any, run: TrainingRun
    ) -> None:
        self._accelerator = accelerator
        self._model = accelerator.unwrap_model(model)
        self._optimizer = getattr(optimizer, "optimizer", optimizer)
        self._run = run
        self.state_dict, self.load_state_dict = run.state_dict, run.load_state_dict
        self.take_commands = run.take_commands
        self._first: Any = self._optimizer.register_step_pre_hook(self._begin)

    @property
    def callback(self) -> SNCallback:
        """Return the SNCallback inside; build it the first time."""
        if self._run.callback is None:
            self._begin()
        assert self._run.callback is not None
        return self._run.callback

    def _begin(self, *_: object) -> None:
        self._first.remove()
        if self._run.callback is None:
            names = ("mixed_precision", "gradient_accumulation_steps", "num_processes")
            config = {name: getattr(self._accelerator, name) for name in names}
            self._run.begin(self._model, self._optimizer, config)

    def step(self, **scalars: Any) -> None:
        """Add scalars such as ``loss`` to the last step; log the worst ratio to the trackers."""
        self._run.report(scalars)
        if self._accelerator.sync_gradients and (worst := self._run.worst_ratio()) is not None:
            self._accelerator.log({WORST_RATIO: worst}, step=self.callback.latest.step)

    def close(self) -> None:
        """Finish the run."""
        self._run.end()

    def __enter__(self) -> AttachedCallback:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: TracebackType | None) -> None:
        self._run.end(error)


def attach(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, **keywords: Any
) -> AttachedCallback:
    """Attach SNCallback to the prepared ``model`` and ``optimizer``; ``save_state`` has its state.

    ``keywords`` are SNCallback's. The hook counts real optimizer steps: neither accumulated
    minibatches nor the steps that a gradient scaler skips.
    """
    attached = AttachedCallback(accelerator, model, optimizer, TrainingRun(keywords))
    accelerator.register_for_checkpointing(attached)
    return attached
