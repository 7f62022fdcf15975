"""What jobs do against bad steps, as the bench compares it: each does what it is known for."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench" / "instability"))

import training
from scenarios import Scenario
from treatments import TREATMENTS, Skip, ZClip, norm_of


def weights(gradient: float, size: int = 4) -> nn.Module:
    """Return two matrices of ones whose gradients have together the norm ``gradient``."""
    model = nn.Sequential(nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.full_like(parameter, gradient / (2 * size**2) ** 0.5)
    return model


def after(treatment, gradient: float) -> float | None:
    """Return the norm with which a step is made, None where it is skipped."""
    model = weights(gradient)
    return norm_of(model) if treatment(model) else None


def taught(treatment):
    """Return the treatment after 30 norms of mean 2 and deviation .2."""
    for step in range(30):
        after(treatment, 1.8 if step % 2 else 2.2)
    return treatment


def test_clipping_holds_the_norm_at_1():
    clip = TREATMENTS["clip 1.0"]()
    assert after(clip, 50.0) == pytest.approx(1.0, rel=1e-4)
    assert after(clip, 0.5) == pytest.approx(0.5, rel=1e-5)


def test_zclip_cuts_an_outlier_back_to_less_than_its_limit_and_leaves_the_usual():
    zclip = taught(ZClip())
    assert after(zclip, 2.2) == pytest.approx(2.2, rel=1e-5)
    # The further out, the nearer to the mean.
    assert 2.0 < after(zclip, 200.0) < after(taught(ZClip()), 3.0) < 2.0 + 2.5 * 0.25


def test_skipping_leaves_out_what_is_6_deviations_above_or_not_finite():
    skip = taught(Skip())
    assert after(skip, 3.0) == pytest.approx(3.0, rel=1e-5)
    assert after(skip, 20.0) is None
    assert after(skip, float("nan")) is None


def test_adaptive_clipping_holds_each_row_at_a_hundredth_of_its_weight_but_the_last():
    model = weights(80.0)
    TREATMENTS["AGC"]()(model)
    first, last = (p.grad for p in model.parameters())
    assert first.norm(dim=1) == pytest.approx([0.02] * 4, rel=1e-5)
    assert float(last.norm()) == pytest.approx(80 / 2**0.5, rel=1e-5)


def test_a_training_alone_is_the_one_that_is_watched():
    scenario = Scenario("mlp", "short", 2e-3, rows=20)
    assert training.train_alone(scenario, 1).losses == training.train(scenario, 1).losses
    halted = training.train_alone(scenario, 1, lambda model: False)
    assert halted.losses[0] == training.train_alone(scenario, 1).losses[0]
    assert halted.losses[5:] != training.train_alone(scenario, 1).losses[5:]
