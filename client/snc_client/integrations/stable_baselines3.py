"""Stable-Baselines3: agents whose policy has one optimizer, such as PPO, A2C and DQN."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from snc_client.callback import SNCallback
from snc_client.integrations.training_run import WORST_RATIO, TrainingRun


class SNCStableBaselinesCallback(BaseCallback):
    """``model.learn(..., callback=SNCStableBaselinesCallback(threshold="3x init"))``.

    Keywords are SNCallback's; ``profile`` is "moving_target" unless given. Steps are those of the
    policy's optimizer, not of the environment.

    * The state is an attribute of the model, ``snc_state``, so that it is inside the file of
      ``model.save``; an agent that was loaded from one continues the same run.
    * The values in the agent's logger are reported once per round of training; ``train/loss`` is
      also ``loss``. ``snc/worst_ratio`` is recorded in that logger.
    * The service's command ``stop`` ends ``learn``. A breach under the action ``stop`` leaves it
      as ThresholdBreached. There is no event for an exception: such a run is failed when the
      callback learns again, which continues from ``snc_state``, or when the process exits.
    * Agents with several optimizers (SAC, TD3) are handed to SNCallback as a list of them.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__()
        self._run = TrainingRun({"profile": "moving_target", **keywords})

    @property
    def callback(self) -> SNCallback | None:
        """Return the SNCallback inside; None before the training has begun."""
        return self._run.callback

    def _on_training_start(self) -> None:
        policy = self.model.policy
        parts = [policy, *(getattr(policy, name, None) for name in ("actor", "critic"))]
        several = [part.optimizer for part in parts if hasattr(part, "optimizer")]
        self._run.abandon()
        self._run.load_state_dict(getattr(self.model, "snc_state", None) or {})
        config = {"agent": type(self.model).__name__, "seed": self.model.seed}
        config |= {name: getattr(self.model, name, None) for name in ("gamma", "batch_size")}
        self._run.begin(policy, several[0] if len(several) == 1 else several, config)

    def _on_rollout_start(self) -> None:
        """Report the round of training that lies between two rollouts."""
        logs = dict(self.logger.name_to_value)
        self._run.report(logs | ({"loss": logs["train/loss"]} if "train/loss" in logs else {}))
        self.model.snc_state = self._run.state_dict()

    def _on_step(self) -> bool:
        return "stop" not in self._run.take_commands()

    def _on_rollout_end(self) -> None:
        if (worst := self._run.worst_ratio()) is not None:
            self.logger.record(WORST_RATIO, worst)

    def _on_training_end(self) -> None:
        self._on_rollout_start()
        self._run.end()
