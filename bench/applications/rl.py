"""Value learning that diverges: off-policy TD, DQN without a target network, SAC in a hurry."""

from __future__ import annotations

import copy
import math
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from harness import Column, Study
from torch import Tensor, nn
from variants import (
    NONE,
    TORCH,
    Variant,
    adam,
    clipping,
    decays,
    descend,
    held,
    largest_sigma,
    other,
    ours,
    prepared,
)

LAYER_NORM = "layer norm"
VARIANTS = (
    NONE,
    TORCH,
    ours("1x init"),
    ours("1.5x init"),
    ours("2x init"),
    ours("3x init"),
    *other(LAYER_NORM),
    *decays(0.01, 0.1, 1.0),
    *clipping(0.1, 1.0, 10.0),
)


def values(inputs: int, outputs: int, width: int, variant: Variant) -> nn.Sequential:
    """Return a value network of two hidden layers, normalised where the variant says so."""
    norms = [nn.LayerNorm(width) if variant.extra == LAYER_NORM else nn.Identity() for _ in "12"]
    network = nn.Sequential(
        nn.Linear(inputs, width), norms[0], nn.ReLU(),
        nn.Linear(width, width), norms[1], nn.ReLU(),
        nn.Linear(width, outputs),
    )  # fmt: skip
    prepared(network, variant)
    return network


class Baird:
    """TD(0) on Baird's star: all true values are 0, and linear features diverge.

    Features are those of Baird (1995), below a network instead of a linear layer. States are drawn
    uniformly; the target policy goes to the seventh state, so the ratio of importance is 7 with a
    probability of 1/7. By SGD, as in the proofs of divergence.
    """

    GAMMA, LR, LIMIT = 0.99, 3e-2, 1e3

    def __init__(self, variant: Variant, seed: int) -> None:
        self.variant = variant
        self.features = torch.zeros(7, 8)
        self.features[:6, :6] = 2 * torch.eye(6)
        self.features[:6, 7], self.features[6, 6], self.features[6, 7] = 1.0, 1.0, 2.0
        self.network = values(8, 1, 64, variant)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), self.LR, weight_decay=variant.decay
        )
        self.callback = held(self.network, self.optimizer, variant)
        self.random = torch.Generator().manual_seed(seed)
        self.largest = 0.0

    def step(self) -> None:
        states = torch.randint(7, (32,), generator=self.random)
        taken = torch.rand(32, generator=self.random) < 1 / 7
        now = self.network(self.features[states])[:, 0]
        with torch.no_grad():
            aim = self.GAMMA * self.network(self.features[6])
        self.largest = max(self.largest, peak(now))
        if self.largest < 1e30:
            loss = (7.0 * taken * (aim - now).square()).mean()
            descend(self.network, self.optimizer, loss, self.variant)

    def sigma(self) -> float:
        return largest_sigma(self.network)

    def results(self) -> dict[str, float]:
        with torch.no_grad():
            error = peak(self.network(self.features))
        return {
            "diverged": float(self.largest > self.LIMIT),
            "error": error,
            "largest": self.largest,
            "sigma": self.sigma(),
        }


def peak(predicted: Tensor) -> float:
    """Return the largest absolute value, infinite where one is not finite."""
    largest = float(predicted.detach().abs().max())
    return largest if math.isfinite(largest) else math.inf


class Cart:
    """DQN on CartPole without a target network, two updates for each step of the environment.

    Rewards are a tenth of the environment's: no true value is above 10. Double the true maximum
    counts as divergence.
    """

    GAMMA, LR, UPDATES, BATCH, LIMIT = 0.99, 3e-3, 2, 64, 20.0
    REWARD, FIRST, SIZE = 0.1, 200, 10_000

    def __init__(self, variant: Variant, seed: int) -> None:
        import gymnasium

        self.variant, self.game = variant, gymnasium.make("CartPole-v1")
        self.seen, _ = self.game.reset(seed=seed)
        self.network = values(4, 2, 64, variant)
        self.optimizer = adam(self.network, variant, self.LR)
        self.callback = held(self.network, self.optimizer, variant)
        self.random = np.random.default_rng(seed)
        self.memory = np.zeros((self.SIZE, 11), np.float32)  # state, next, action, reward, goes on
        self.steps, self.largest, self.score = 0, 0.0, 0.0
        self.scores: list[float] = []

    def step(self) -> None:
        self._play()
        if self.steps < self.FIRST or self.largest > 1e30:
            return
        for _ in range(self.UPDATES):
            rows = self.random.integers(0, min(self.steps, self.SIZE), self.BATCH)
            batch = torch.from_numpy(self.memory[rows])
            now = self.network(batch[:, :4]).gather(1, batch[:, 8:9].long())[:, 0]
            with torch.no_grad():
                ahead = self.network(batch[:, 4:8]).max(1).values
            aim = batch[:, 9] + self.GAMMA * batch[:, 10] * ahead
            self.largest = max(self.largest, peak(now))
            descend(self.network, self.optimizer, F.mse_loss(now, aim), self.variant)

    def _play(self) -> None:
        chance = max(0.05, 1 - self.steps / 1_000)
        if self.random.random() < chance:
            action = int(self.random.integers(2))
        else:
            with torch.no_grad():
                action = int(self.network(torch.from_numpy(self.seen)[None]).argmax())
        ahead, reward, ended, cut, _ = self.game.step(action)
        self.memory[self.steps % self.SIZE] = (
            *self.seen, *ahead, action, self.REWARD * float(reward), not ended,
        )  # fmt: skip
        self.steps += 1
        self.score += float(reward)
        self.seen = ahead
        if ended or cut:
            self.scores.append(self.score)
            self.score, (self.seen, _) = 0.0, self.game.reset()

    def sigma(self) -> float:
        return largest_sigma(self.network)

    def results(self) -> dict[str, float]:
        recent = [*self.scores, self.score][-10:]
        return {
            "diverged": float(self.largest > self.LIMIT),
            "return": sum(recent) / len(recent),
            "largest": self.largest,
            "sigma": self.sigma(),
        }


class Pendulum:
    """SAC of Stable-Baselines3 on Pendulum: a high rate, eight updates a step, no slow target.

    Rewards are at least -16.3 a step: no true value is below -1,630. Twice that is divergence.
    """

    LIMIT, UPDATES, LR, FIRST = 3_260.0, 8, 3e-3, 100

    def __init__(self, variant: Variant, seed: int) -> None:
        from stable_baselines3 import SAC
        from stable_baselines3.common.logger import Logger

        self.variant = variant
        self.agent = SAC(
            "MlpPolicy", "Pendulum-v1", learning_rate=self.LR, learning_starts=self.FIRST, tau=1.0,
            gradient_steps=self.UPDATES, seed=seed, device="cpu",
            policy_kwargs={"net_arch": [64, 64]},
        )  # fmt: skip
        critic = self.agent.critic
        if variant.extra == LAYER_NORM:
            for name in critic.q_networks:
                for place in (1, 3):
                    name[place] = nn.Sequential(nn.LayerNorm(64), name[place])
        prepared(critic, variant)
        self.agent.critic_target = copy.deepcopy(critic)
        critic.optimizer = adam(critic, variant, self.LR)
        if variant.clip is not None:
            parameters = list(critic.parameters())
            critic.optimizer.register_step_pre_hook(
                lambda *_: nn.utils.clip_grad_norm_(parameters, variant.clip) and None
            )
        self.callback = held(critic, critic.optimizer, variant)
        self.agent.set_logger(Logger(None, []))
        self.agent._setup_learn(1_000_000)
        self.largest = 0.0

    def step(self) -> None:
        self.agent.learn(1, reset_num_timesteps=False, log_interval=None)
        if self.agent.num_timesteps % 20 == 0:
            self.largest = max(self.largest, self._value())

    def _value(self) -> float:
        if self.agent.replay_buffer.pos == 0:
            return 0.0
        batch = self.agent.replay_buffer.sample(64)
        with torch.no_grad():
            return max(map(peak, self.agent.critic(batch.observations, batch.actions)))

    def sigma(self) -> float:
        return largest_sigma(self.agent.critic)

    def results(self) -> dict[str, float]:
        recent = [episode["r"] for episode in self.agent.ep_info_buffer or ()][-5:]
        return {
            "diverged": float(self.largest > self.LIMIT),
            "return": sum(recent) / len(recent) if recent else math.nan,
            "largest": self.largest,
            "sigma": self.sigma(),
        }


def columns(result: str) -> tuple[Column, ...]:
    return (
        Column("diverged", "diverged", share=True),
        Column(result, {"error": "error at the end"}.get(result, "return at the end"), 1),
        Column("largest", "largest value", 1),
        Column("sigma", "sigma", 1),
    )


SAC_VARIANTS = tuple(v for v in VARIANTS if v.name not in ("rescale 3x init", "clipping 10"))
TD = Study("rl-td", "Off-policy TD, Baird's star under a network", VARIANTS, 5_000,
           Baird, columns("error"), ("diverged", "error"))  # fmt: skip
DQN = Study("rl-dqn", "DQN on CartPole, no target network, two updates a step", VARIANTS, 5_000,
            Cart, columns("return"), ("diverged", "return"), Cart.FIRST)  # fmt: skip
IN_A_HURRY = Study("rl-sac", "SAC on Pendulum, no slow target, eight updates a step",
                   SAC_VARIANTS, 1_000, Pendulum, columns("return"),
                   ("diverged", "return"), Pendulum.FIRST)  # fmt: skip
STUDIES = (
    TD,
    *([DQN] if find_spec("gymnasium") else []),
    *([IN_A_HURRY] if find_spec("stable_baselines3") else []),
)
