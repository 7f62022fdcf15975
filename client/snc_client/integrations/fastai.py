"""fastai's Learner."""

from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback, CancelFitException

from snc_client.callback import SNCallback
from snc_client.integrations.training_run import TrainingRun


class SNCFastaiCallback(Callback):
    """``Learner(..., cbs=[SNCFastaiCallback(threshold="3x init")])``; SNCallback's keywords.

    * fastai has an optimizer of its own, which is no torch optimizer: steps are counted at
      ``after_step``. ``update_norm``, masters and the guard need a torch optimizer: use
      ``OptimWrapper`` and SNCallback itself for these.
    * The state is written beside the Learner's models (``path/model_dir``) after each epoch.
      ``resume=True`` reads it at the next ``fit`` and continues its run; a further ``fit`` of one
      Learner, as in ``fine_tune``, does so by itself.
    * The loss and the learning rate are reported at each step, the recorder's values (validation
      loss, metrics) of an epoch with the first step after it. ``snc_worst_ratio`` is an attribute
      of the Learner.
    * The service's command ``stop`` cancels the fit. A breach under the action ``stop`` leaves it
      as ThresholdBreached. fastai has no event for an exception: such a run is failed when the
      Learner fits again, which continues it, or when the process exits.
    """

    order = 70  # after mixed precision, gradient accumulation and the recorder
    run_valid = False

    def __init__(self, *, resume: bool = False, **keywords: Any) -> None:
        super().__init__()
        self._training = TrainingRun(keywords)
        self._resume = resume
        self._of_epoch: dict[str, Any] = {}

    @property
    def callback(self) -> SNCallback | None:
        """Return the SNCallback inside; None before the training has begun."""
        return self._training.callback

    def before_fit(self) -> None:
        """Attach to the Learner's model; continue an earlier fit."""
        if hasattr(self.learn, "lr_finder") or hasattr(self.learn, "gather_preds"):
            self.run = False
            return
        self._training.abandon()
        if self._resume:
            self._training.load(self._folder())
        elif self._training.callback is not None:
            self._training.load_state_dict(self._training.state_dict())
        config = {"n_epoch": self.learn.n_epoch, **dict(self.learn.opt.hypers[-1])}
        self._training.begin(self.learn.model, None, config)

    def after_step(self) -> None:
        """Count the optimizer's step, and obey the service."""
        assert self.callback is not None
        rate = max(group["lr"] for group in self.learn.opt.hypers)
        self._training.report({"loss": self.learn.loss.detach(), "lr": rate, **self._of_epoch})
        self._of_epoch = {}
        self.learn.snc_worst_ratio = self._training.worst_ratio()
        if "stop" in self._training.take_commands():
            raise CancelFitException

    def after_epoch(self) -> None:
        """Keep the recorder's values for the next step's row, and write the state."""
        recorder = self.learn.recorder
        self._of_epoch = dict(zip(recorder.metric_names[1:], recorder.log[1:], strict=False))
        self._folder().mkdir(parents=True, exist_ok=True)
        self._training.save(self._folder())

    def after_fit(self) -> None:
        """Finish the run."""
        self._training.end()

    def _folder(self) -> Any:
        return self.learn.path / self.learn.model_dir
