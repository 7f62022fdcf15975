"""The digits of scikit-learn (1,797 images of 8 x 8), and a network that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

TRAINED = 1_297  # the other 500 are for testing


@dataclass(frozen=True)
class Digits:
    """Images in [0, 1], [n, 1, 8, 8], and their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@cache
def load() -> Digits:
    found = load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32)[order, None] / 16
    labels = torch.tensor(found.target)[order]
    return Digits(images[:TRAINED], labels[:TRAINED], images[TRAINED:], labels[TRAINED:])


@cache
def reader() -> nn.Module:
    """Return a classifier of [n, 64], the same whatever the seed: it judges generated digits."""
    data = load()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(200):
            optimizer.zero_grad()
            F.cross_entropy(model(data.train.flatten(1)), data.train_labels).backward()
            optimizer.step()
    return model
