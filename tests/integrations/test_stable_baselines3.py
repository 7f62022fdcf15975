"""Stable-Baselines3 with the real library and the real service."""

import time

import numpy as np
import pytest
import torch
from integration_cases import Rest, spectral_norm, started, worst_excess

sb3 = pytest.importorskip(
    "stable_baselines3", reason="install the extra [frameworks] to test Stable-Baselines3"
)
gymnasium = pytest.importorskip("gymnasium")

from snc_client.integrations.stable_baselines3 import SNCStableBaselinesCallback  # noqa: E402

LAYER = "mlp_extractor.policy_net.0.weight"
EPOCHS, ROUND, BATCH = 2, 32, 16
STEPS_PER_ROUND = EPOCHS * ROUND // BATCH


class Guess(gymnasium.Env):
    """Reward for an action that has the sign of what was seen; fails at a given step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, fails_at: int = 0, wait: float = 0.0) -> None:
        self._fails_at, self._wait, self._steps = fails_at, wait, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._seen = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return self._seen, {}

    def step(self, action):
        self._steps += 1
        time.sleep(self._wait)
        if self._steps == self._fails_at:
            raise OSError("the disk is gone")
        reward = float((self._seen[0] > 0) == action)
        return self.reset()[0], reward, self._steps % 8 == 0, False, {}


def agent(environment=None):
    return sb3.PPO(
        "MlpPolicy", environment or Guess(), n_steps=ROUND, batch_size=BATCH, n_epochs=EPOCHS,
        learning_rate=3e-2, seed=0, device="cpu",
    )  # fmt: skip


def callback(**keywords) -> SNCStableBaselinesCallback:
    return SNCStableBaselinesCallback(**{"threshold": "1.2x init", "idle_every": 1, **keywords})


def test_a_training_is_held_counted_and_reported(rest: Rest):
    model = agent().learn(3 * ROUND, callback=(mine := callback()))
    assert worst_excess(model.policy, mine.callback) <= 1.001
    run = rest.only_run()
    assert (run["state"], run["last_step"]) == ("finished", 3 * STEPS_PER_ROUND)
    assert run["config"]["agent"] == "PPO"
    assert rest.steps(run["run"], LAYER)[-12:] == list(range(1, 13))
    losses = rest.scalar(run["run"], "loss")
    assert sorted(losses) == [4, 8, 12]
    assert losses[12] == pytest.approx(model.logger.name_to_value["train/loss"])


def test_an_agent_loaded_from_its_file_continues_its_run(rest: Rest, tmp_path):
    first, second = callback(), callback()
    agent().learn(ROUND, callback=first).save(tmp_path / "agent.zip")
    loaded = sb3.PPO.load(tmp_path / "agent.zip", env=Guess(), device="cpu")
    loaded.learn(ROUND, callback=second, reset_num_timesteps=False)
    assert second.callback.run == first.callback.run
    thresholds = [c.callback.latest[LAYER]["threshold"] for c in (first, second)]
    assert thresholds[0] == pytest.approx(thresholds[1])
    assert rest.only_run()["last_step"] == 2 * STEPS_PER_ROUND
    assert rest.steps(second.callback.run, LAYER)[-8:] == list(range(1, 9))


def test_a_command_of_the_service_ends_learn(rest: Rest):
    class Asks(sb3.common.callbacks.BaseCallback):
        def _on_step(self):
            if self.n_calls == ROUND + 1:
                rest.command(mine.callback.run, "stop")
            return True

    mine = callback()
    model = agent(Guess(wait=0.01)).learn(2_000, callback=[Asks(), mine])
    assert model.num_timesteps < 2_000
    assert rest.only_run()["state"] == "finished"


@pytest.mark.parametrize(
    ("caught", "breach"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_what_learn_raises_fails_the_run_with_its_last_row(rest: Rest, tmp_path, caught, breach):
    error = "ThresholdBreached" if breach else "OSError"
    stop = "threshold='0.9x init', action='stop'" if breach else ""
    code = (
        "from test_stable_baselines3 import *\nfrom snc_client import ThresholdBreached\n"
        f"mine = callback({stop})\n"
        f"model = agent(Guess(fails_at={0 if breach else ROUND + 8}))\n"
        "try:\n    model.learn(3 * ROUND, callback=mine)\n"
        f"except {error if caught else 'KeyError'}:\n    pass\n"
        "finally:\n    torch.save(model.policy.state_dict(), folder / 'policy.pt')\n"
    )
    assert started(tmp_path, rest.url, code).wait(timeout=100) == (0 if caught else 1)
    run = rest.only_run()
    last = 2 if breach else STEPS_PER_ROUND  # a breach is read one step later
    assert (run["state"], run["last_step"]) == ("failed", last)
    left = spectral_norm(torch.load(tmp_path / "policy.pt")[LAYER])
    assert rest.left(run["run"], LAYER) == (last, pytest.approx(left, rel=1e-3))


def test_learning_after_a_failure_continues_its_run(rest: Rest):
    model, mine = agent(Guess(fails_at=ROUND + 8)), callback()
    with pytest.raises(OSError, match="the disk is gone"):
        model.learn(3 * ROUND, callback=mine)
    failed, threshold = mine.callback, mine.callback.latest[LAYER]["threshold"]
    model.learn(3 * ROUND, callback=mine)
    assert mine.callback is not failed
    assert mine.callback.latest[LAYER]["threshold"] == threshold
    run = rest.only_run()
    last = 4 * STEPS_PER_ROUND
    assert (run["run"], run["state"], run["last_step"]) == (failed.run, "finished", last)
    assert rest.steps(failed.run, LAYER)[-last:] == list(range(1, last + 1))
