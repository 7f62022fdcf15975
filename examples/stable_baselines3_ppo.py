"""Stable-Baselines3: PPO learns the sign of what it sees; steps are those of its optimizer.

Start the service with `snc serve`, set SNC_URL=http://127.0.0.1:8470, and run this file.
"""

import gymnasium
import numpy as np
from stable_baselines3 import PPO

from snc_client.integrations.stable_baselines3 import SNCStableBaselinesCallback


class Sign(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    left = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 16
        return self._see(), {}

    def step(self, action):
        reward = float((self.seen[0] > 0) == action)
        self.left -= 1
        return self._see(), reward, self.left == 0, False, {}

    def _see(self):
        self.seen = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return self.seen


callback = SNCStableBaselinesCallback(threshold="1.5x init")
agent = PPO("MlpPolicy", Sign(), n_steps=128, batch_size=64, n_epochs=4, seed=0, device="cpu")
agent.learn(512, callback=callback)

for name, values in callback.callback.latest.items():
    print(f"{name:34} sigma {values['sigma']:.3f}  threshold {values['threshold']:.3f}")
