"""Classifiers of digits under attack: clean, attacked and certified accuracy in the L2 norm."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from digits import TRAINED, load
from harness import Column, Study
from torch import Tensor, nn
from variants import (
    NONE,
    TORCH,
    Variant,
    adam,
    decays,
    descend,
    held,
    largest_sigma,
    other,
    ours,
    prepared,
)

from snc_client import lipschitz_bound

BATCH, LR = 100, 3e-3
SHARPNESS = 4.0  # the loss sees so many times the logits, in every variant
RADII = (0.25, 0.5, 0.75, 1.0)
TESTED, STEPS, RESTARTS = 200, 50, 5  # images, and the attack on each
PARSEVAL, TORCHLIP, ADVERSARIAL = "Parseval penalty", "torchlip", "adversarial training"

VARIANTS = (
    NONE,
    TORCH,
    ours(1.0),
    ours(1.5),
    ours(1.0, "normalize"),
    ours(1.0, "cap"),
    ours(1.5, "cap"),
    ours(2.0, "cap"),
    *other(PARSEVAL, 0.01, 0.1, 1.0),
    *other("orthogonal"),
    *(other(TORCHLIP) if find_spec("deel") else ()),
    *decays(0.1, 0.3, 1.0),
    *other(ADVERSARIAL, 0.25, 0.5, 1.0),
)


def perceptron() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128), nn.ReLU(),
        nn.Linear(128, 128), nn.ReLU(),
        nn.Linear(128, 10),
    )  # fmt: skip


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64), nn.ReLU(),
        nn.Linear(64, 10),
    )  # fmt: skip


class PairSort(nn.Module):
    """Torchlip's GroupSort2 as one sort: its bound is 1, that of maximum and minimum is 1.4."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, 2)).sort(2).values.flatten(1, 2)


def lipschitz_layers(network: nn.Sequential) -> nn.Sequential:
    """Return the network with deel-torchlip's layers, and pairs that are sorted."""
    from deel import torchlip

    layers: list[nn.Module] = []
    for layer in network:
        if isinstance(layer, nn.Linear):
            layers.append(torchlip.SpectralLinear(layer.in_features, layer.out_features))
        elif isinstance(layer, nn.Conv2d):
            layers.append(torchlip.SpectralConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size,
                stride=layer.stride, padding=layer.padding, padding_mode="zeros",
            ))  # fmt: skip
        elif isinstance(layer, nn.ReLU):
            layers.append(PairSort())
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def exported(network: nn.Sequential) -> nn.Sequential:
    """Return the network with torch's layers in the place of torchlip's."""
    return nn.Sequential(
        *(m.vanilla_export() if hasattr(m, "vanilla_export") else m for m in network)
    )


class Classifier:
    """A network, trained by cross entropy on batches of digits."""

    def __init__(self, convolutions: bool, variant: Variant, seed: int) -> None:
        self.variant, self.data = variant, load()
        self.random = torch.Generator().manual_seed(seed)
        network = convolutional() if convolutions else perceptron()
        if variant.extra == TORCHLIP:
            network = lipschitz_layers(network)
        elif variant.extra == "orthogonal":
            for module in network:
                if isinstance(module, nn.Linear):
                    nn.utils.parametrizations.orthogonal(module)
        self.network = prepared(network, variant)
        self.optimizer = adam(self.network, variant, LR)
        self.callback = held(
            self.network,
            self.optimizer,
            variant,
            conv="operator",
            example_input=self.data.test[:1],
        )

    def step(self) -> None:
        chosen = torch.randint(TRAINED, (BATCH,), generator=self.random)
        images, labels = self.data.train[chosen], self.data.train_labels[chosen]
        if self.variant.extra == ADVERSARIAL:
            images = attacked(self.network, images, labels, self.variant.strength, 7, False)
        loss = F.cross_entropy(SHARPNESS * self.network(images), labels)
        if self.variant.extra == PARSEVAL:
            loss = loss + self.variant.strength * sum(map(skewness, self.network))
        descend(self.network, self.optimizer, loss, self.variant)

    def sigma(self) -> float:
        return largest_sigma(self.network)

    def results(self) -> dict[str, float]:
        network = self.network.eval()
        if self.variant.extra == TORCHLIP:
            network = exported(network)
        for parameter in network.parameters():
            parameter.requires_grad_(False)
        images, labels = self.data.test[:TESTED], self.data.test_labels[:TESTED]
        found = lipschitz_bound(network, images[:1])
        with torch.no_grad():
            logits = network(images)
        right = logits.argmax(1) == labels
        radius = found.certified_radius(logits)
        by_product = radius * found.bound / found.product
        values = {"clean": share(right), "bound": found.bound, "product": found.product}
        stands = right.clone()
        for r in RADII:
            stands &= self._withstands(network, images, labels, stands, r)
            values[f"attacked {r:g}"] = share(stands)
            values[f"certified {r:g}"] = share(right & (radius >= r))
            values[f"by product {r:g}"] = share(right & (by_product >= r))
        return values

    def _withstands(
        self, network: nn.Module, images: Tensor, labels: Tensor, stands: Tensor, radius: float
    ) -> Tensor:
        """Return which of the images that stand are right after every restart of the attack.

        What is broken within a smaller radius is broken within this one.
        """
        stands = stands.clone()
        for restart in range(RESTARTS):
            left = stands.nonzero()[:, 0]
            if not len(left):
                break
            moved = attacked(network, images[left], labels[left], radius, STEPS, restart > 0)
            with torch.no_grad():
                stands[left] = network(moved).argmax(1) == labels[left]
        return stands


def share(true: Tensor) -> float:
    return float(true.double().mean())


def skewness(layer: nn.Module) -> Tensor | float:
    """Return ||W W' - I||^2, or of W' W where W is tall: the penalty of Parseval networks."""
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return 0.0
    weight = layer.weight.flatten(1)
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    return (gram - torch.eye(len(gram))).square().sum()


def attacked(
    network: nn.Module, images: Tensor, labels: Tensor, radius: float, steps: int, anywhere: bool
) -> Tensor:
    """Return the images moved by PGD in the L2 norm, within [0, 1].

    Steps of 2.5 radius / steps against the gradient of the margin of the true class, from the
    image itself, or from ``anywhere`` in the ball.
    """
    moved = torch.zeros_like(images)
    if anywhere:
        moved = radius * torch.rand(len(images), 1, 1, 1) * unit(torch.randn_like(images))
    for _ in range(steps):
        moved.requires_grad_()
        (slope,) = torch.autograd.grad(margin(network, images + moved, labels).sum(), moved)
        moved = moved.detach() - 2.5 * radius / steps * unit(slope)
        moved = moved * (radius / length(moved)).clamp(max=1.0)
        moved = (images + moved).clamp(0, 1) - images
    return (images + moved).detach()


def margin(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits = network(images)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None])[:, 0] - others.max(1).values


def length(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


def unit(images: Tensor) -> Tensor:
    return images / length(images)


COLUMNS = (
    Column("clean", "clean"),
    *(Column(f"attacked {r:g}", f"attacked {r:g}") for r in RADII),
    *(Column(f"certified {r:g}", f"certified {r:g}") for r in RADII),
    *(Column(f"by product {r:g}", f"by product {r:g}") for r in RADII),
    Column("bound", "bound", 1),
)


def study(convolutions: bool, name: str, title: str) -> Study:
    begin = partial(Classifier, convolutions)
    return Study(
        f"robust-{name}", title, VARIANTS, 2_000, begin, COLUMNS, ("attacked 0.5", "certified 0.5")
    )


STUDIES = (
    study(False, "dense", "Digits under attack, three dense layers"),
    study(True, "conv", "Digits under attack, two convolutions and two dense layers"),
)
