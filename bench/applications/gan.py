"""Generative adversarial networks on rings and grids of Gaussians, and on digits of 8 x 8."""

from __future__ import annotations

import math
from functools import cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from digits import load, reader
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

BATCH, LATENT, LR, BETAS = 128, 16, 2e-3, (0.5, 0.9)
SAMPLES, SPREAD, NEAR = 2_500, 0.05, 3.0  # NEAR: standard deviations to a mode
PENALTY = "gradient penalty"

VARIANTS = (
    NONE,
    TORCH,
    ours(1.0, "normalize"),
    ours(3.0, "normalize"),
    ours(2.0),
    ours(3.0),
    ours(5.0),
    ours(3.0, every=5),
    ours(3.0, every=10),
    ours(3.0, "cap"),
    *other(PENALTY, 0.1, 1.0, 10.0),
    *decays(0.1, 1.0),
    *clipping(0.1, 1.0),
)


@cache
def centres(modes: int) -> Tensor:
    """Return the means of the mixture, [modes, 2], within about [-1, 1]."""
    if modes == 8:
        angle = 2 * math.pi * torch.arange(8) / 8
        return torch.stack((angle.cos(), angle.sin()), 1)
    side = torch.linspace(-1, 1, math.isqrt(modes))
    return torch.cartesian_prod(side, side)


class Data:
    """Samples of a mixture, or digits, and how good generated ones are."""

    def __init__(self, modes: int, seed: int) -> None:
        self.modes = modes
        self.random = torch.Generator().manual_seed(seed)
        self.spread = SPREAD if modes == 8 else SPREAD / 2
        if modes == 10:
            self.images = load().train.flatten(1) * 2 - 1
        self.width = 64 if modes == 10 else 2

    def draw(self, count: int) -> Tensor:
        if self.modes == 10:
            return self.images[torch.randint(len(self.images), (count,), generator=self.random)]
        means = centres(self.modes)[torch.randint(self.modes, (count,), generator=self.random)]
        return means + self.spread * torch.randn(count, 2, generator=self.random)

    def judged(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mode of each sample, and whether it is a good sample of it."""
        if self.modes == 10:
            read = reader()
            with torch.no_grad():
                sure, mode = read((samples + 1) / 2).softmax(1).max(1)
            return mode, sure > 0.9
        distance, mode = torch.cdist(samples, centres(self.modes)).min(1)
        return mode, distance < NEAR * self.spread


def perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


class Pair:
    """Generator and critic, non-saturating logistic loss, one step each in turn."""

    def __init__(self, modes: int, variant: Variant, seed: int) -> None:
        self.variant, self.data = variant, Data(modes, seed)
        width = self.data.width
        self.generator = perceptron(LATENT, 128, 128, width)
        self.critic = prepared(perceptron(width, 128, 128, 1), variant)
        self.of_critic = adam(self.critic, variant, LR, betas=BETAS)
        self.of_generator = torch.optim.Adam(self.generator.parameters(), LR, betas=BETAS)
        self.callback = held(
            {"generator": self.generator, "critic": self.critic},
            [self.of_critic, self.of_generator],
            variant,
            "critic.*",
        )

    def generate(self, count: int) -> Tensor:
        return self.generator(torch.randn(count, LATENT, generator=self.data.random))

    def step(self) -> None:
        real, made = self.data.draw(BATCH), self.generate(BATCH)
        loss = F.softplus(-self.critic(real)).mean() + F.softplus(self.critic(made.detach())).mean()
        if self.variant.extra == PENALTY:
            loss = loss + self.variant.strength * self._steepness(real, made.detach())
        descend(self.critic, self.of_critic, loss, self.variant)
        self.of_generator.zero_grad()
        F.softplus(-self.critic(made)).mean().backward()
        self.of_generator.step()

    def _steepness(self, real: Tensor, made: Tensor) -> Tensor:
        """Return the penalty of WGAN-GP: how far slopes between the samples are from 1."""
        share = torch.rand(len(real), 1)
        between = (share * real + (1 - share) * made).requires_grad_()
        (slope,) = torch.autograd.grad(self.critic(between).sum(), between, create_graph=True)
        return (slope.norm(dim=1) - 1).square().mean()

    def sigma(self) -> float:
        return largest_sigma(self.critic)

    def results(self) -> dict[str, float]:
        with torch.no_grad():
            samples = self.generate(SAMPLES)
        mode, good = self.data.judged(samples)
        counts = torch.bincount(mode[good], minlength=self.data.modes)
        enough = SAMPLES / self.data.modes / 10  # a tenth of its share
        return {
            "modes": float((counts >= enough).sum()),
            "good": float(good.double().mean()),
            "distance": sliced(samples, self.data.draw(SAMPLES)),
            "sigma": self.sigma(),
        }


def sliced(a: Tensor, b: Tensor) -> float:
    """Return the sliced Wasserstein-1 distance: the mean over 200 directions."""
    random = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(a.shape[1], 200, generator=random), dim=0)
    return float((((a @ directions).sort(0)[0]) - ((b @ directions).sort(0)[0])).abs().mean())


COLUMNS = (
    Column("modes", "modes kept", 1),
    Column("good", "good samples"),
    Column("distance", "sliced W1", 3),
    Column("sigma", "sigma of D", 1),
)


def study(modes: int, title: str, steps: int) -> Study:
    return Study(
        f"gan-{modes}", title, VARIANTS, steps, partial(Pair, modes), COLUMNS, ("modes", "good")
    )


STUDIES = (
    study(8, "GAN, 8 Gaussians on a ring", 2_000),
    study(25, "GAN, 25 Gaussians on a grid", 2_000),
    study(10, "GAN, digits of 8 x 8", 2_000),
)
