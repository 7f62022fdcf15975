"""Lightning's Trainer, of the package ``lightning`` (2.x)."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from snc_client.callback import SNCallback
from snc_client.integrations.training_run import WORST_RATIO, TrainingRun


class SNCLightningCallback(Callback):
    """``Trainer(callbacks=[SNCLightningCallback(threshold="3x init")])``; SNCallback's keywords.

    * The state is in Lightning's own checkpoints; ``fit(ckpt_path=...)`` continues the same run.
    * The run's config is the module's ``hparams`` and the Trainer's limits. The loss is reported
      at every minibatch, the module's logged values at every ``log_every_n_steps``.
    * ``snc/worst_ratio`` is logged by the module, so that loggers, EarlyStopping and
      ModelCheckpoint see it.
    * The service's command ``stop`` sets ``trainer.should_stop``, ``checkpoint`` writes
      ``snc-step=N.ckpt`` into ``default_root_dir``. A breach under the action ``stop`` leaves
      ``fit()`` as ThresholdBreached. Any exception ends the run as failed.
    """

    def __init__(self, **keywords: Any) -> None:
        self._run = TrainingRun(keywords)

    @property
    def callback(self) -> SNCallback | None:
        """Return the SNCallback inside; None before the training has begun."""
        return self._run.callback

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the module and its optimizers, which a checkpoint has restored by now."""
        limits = {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps}
        config = {"hparams": dict(pl_module.hparams), "trainer": limits}
        several = trainer.optimizers
        self._run.begin(pl_module, several[0] if len(several) == 1 else several, config)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any
    ) -> None:
        """Report the loss, log the worst ratio and obey the service's commands."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        due = trainer.global_step % trainer.log_every_n_steps == 0
        self._run.report({**(trainer.callback_metrics if due else {}), "loss": loss})
        if (worst := self._run.worst_ratio()) is not None:
            pl_module.log(WORST_RATIO, worst, on_step=True, on_epoch=False)
        commands = self._run.take_commands()
        trainer.should_stop |= "stop" in commands
        if "checkpoint" in commands:
            name = f"snc-step={trainer.global_step}.ckpt"
            trainer.save_checkpoint(os.path.join(trainer.default_root_dir, name))

    def on_exception(self, _: Any, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish the run as failed."""
        self._run.end(exception)

    def on_train_end(self, *_: Any) -> None:
        """Finish the run."""
        self._run.end()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that Lightning writes into its checkpoint."""
        return self._run.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the state that Lightning has read from its checkpoint."""
        self._run.load_state_dict(state_dict)
