"""Hugging Face Trainer, and the trainers of TRL that derive from it."""

from __future__ import annotations

import logging
import os
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers import TrainingArguments as Arguments

from snc_client.callback import SNCallback
from snc_client.integrations.training_run import WORST_RATIO, TrainingRun

log = logging.getLogger("snc")


class SNCTrainerCallback(TrainerCallback):
    """``Trainer(..., callbacks=[SNCTrainerCallback(threshold="3x init")])``; SNCallback's keywords.

    * The state is a file in each ``checkpoint-N/``. A training resumed from it continues the same
      run. A checkpoint outside ``output_dir`` is found where ``resume_from`` here, or
      ``resume_from_checkpoint`` of the Trainer's arguments, names its folder.
    * The run's config is that of Trainer and model. Values that the Trainer logs become scalars.
    * ``snc/worst_ratio`` is added to ``log_history`` and the console. Reporters that the Trainer
      makes itself (``report_to``) are called before any user's callback and miss it.
    * The service's commands ``stop`` and ``checkpoint`` act through the Trainer's control. A breach
      under the action ``stop`` leaves ``train()`` as ThresholdBreached.
    * The Trainer has no event for an exception. A run whose training raised ends as failed when
      the Trainer trains again or when the process exits.
    """

    def __init__(self, *, resume_from: str | None = None, **keywords: Any) -> None:
        self._run = TrainingRun(keywords)
        self._resume_from = resume_from

    @property
    def callback(self) -> SNCallback | None:
        """Return the SNCallback inside; None before the training has begun."""
        return self._run.callback

    def on_train_begin(self, args: Arguments, state: TrainerState, *_: Any, **objects: Any) -> None:
        """Attach to the model and its optimizer; continue if the Trainer does."""
        self._run.abandon()
        if state.global_step:
            self._resume(args, state)
        model = getattr(objects["model"], "config", None)
        config = {"arguments": args.to_dict(), "model": model.to_dict() if model else None}
        self._run.begin(objects["model"], objects["optimizer"], config)

    def on_step_end(self, _: Any, state: Any, control: TrainerControl, **objects: Any) -> None:
        """Obey the service's commands."""
        commands = self._run.take_commands()
        control.should_save |= "checkpoint" in commands
        control.should_training_stop |= "stop" in commands

    def on_log(self, _: Any, state: TrainerState, *args: Any, **objects: Any) -> None:
        """Report the values that the Trainer logs, and add the worst ratio to them."""
        logs = objects["logs"]
        self._run.report(logs)
        if (worst := self._run.worst_ratio()) is not None:
            logs[WORST_RATIO] = state.log_history[-1][WORST_RATIO] = worst

    def on_save(self, args: Arguments, state: TrainerState, *_: Any, **objects: Any) -> None:
        """Write the state into the checkpoint that has just been written."""
        self._run.save(_checkpoint(args, state), write=state.is_world_process_zero)

    def on_train_end(self, *_: Any, **objects: Any) -> None:
        """Finish the run."""
        self._run.end()

    def _resume(self, args: Arguments, state: TrainerState) -> None:
        places = [self._resume_from, args.resume_from_checkpoint, _checkpoint(args, state)]
        if not any(isinstance(place, str) and self._run.load(place) for place in places):
            log.warning("snc: no saved state in %s: a new run, references measured anew", places)


def _checkpoint(args: Arguments, state: TrainerState) -> str:
    return os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
