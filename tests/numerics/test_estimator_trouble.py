"""What makes estimators err: values, shapes and weights that break, heal, or turn overnight."""

from __future__ import annotations

import math
from statistics import median

import pytest
import torch
from spectra import gaussian, norm, planted
from torch import Tensor

from snc_client.estimator import BlockPower
from snc_client.operators import Matrix

CPU = torch.device("cpu")
ROUNDING = 2e-6


def sigma_after(w: Tensor, steps: int) -> float:
    blocks = BlockPower([(w.shape[0], w.shape[1])], device=CPU)
    for _ in range(steps):
        sigma = blocks.step_([Matrix(w)]).sigma
    return float(sigma)


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 40), (40, 1), (3, 5), (5, 3), (16, 16), (9, 200), (15, 15), (17, 16)]
)
def test_a_small_side_within_the_block_is_solved_at_once(shape: tuple[int, int]) -> None:
    for seed in range(5):
        w = gaussian(*shape, seed=seed)
        for steps in (1, 9, 20):
            assert sigma_after(w, steps) == pytest.approx(norm(w), rel=ROUNDING)


def test_a_tall_matrix_of_50000_rows() -> None:
    # Column j holds +-d[j] at every 768th row: orthogonal columns, so their norms are the answer.
    rows, n = 50_000, 768
    d = torch.linspace(1.0, 0.3, n)
    d[:3] = torch.tensor([2.0, 1.9, 1.6])
    at = torch.arange(rows)
    w = torch.zeros(rows, n)
    w[at, at % n] = d[at % n] * torch.where((at // n) % 2 == 0, 1.0, -1.0)
    true = float(w[:, 0].double().norm())
    assert sigma_after(w, 4) == pytest.approx(true, rel=1e-5)


def test_a_zero_weight_has_sigma_zero_and_a_later_one_is_found() -> None:
    blocks = BlockPower([(30, 20)], device=CPU)
    zero, later = torch.zeros(30, 20), gaussian(30, 20)
    for _ in range(3):
        estimates = blocks.step_([Matrix(zero)])
        assert float(estimates.sigma) == 0.0
        assert float(estimates.residual) == 0.0
    for _ in range(12):
        sigma = float(blocks.step_([Matrix(later)]).sigma)
    assert sigma == pytest.approx(norm(later), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30, 1e36])
def test_scale_changes_nothing_but_the_scale(scale: float) -> None:
    w = planted(torch.cat([torch.tensor([1.0, 0.9]), torch.linspace(0.5, 0, 38)]), 60).float()
    assert sigma_after(w * scale, 5) / scale == pytest.approx(norm(w), rel=1e-5)


def test_subnormal_weights_have_a_sigma_to_their_own_digits() -> None:
    w = gaussian(40, 30) * 1e-42  # three digits each; sums of 40 keep about as many
    assert sigma_after(w, 20) == pytest.approx(norm(w), rel=2e-3)


def test_a_constant_matrix_and_one_huge_entry() -> None:
    assert sigma_after(torch.full((70, 50), 0.3), 1) == pytest.approx(
        0.3 * math.sqrt(70 * 50), rel=ROUNDING
    )
    w = gaussian(40, 40)
    w[7, 5] = 1e20
    assert sigma_after(w, 2) == pytest.approx(1e20, rel=ROUNDING)


def test_a_norm_beyond_float32_is_not_finite_rather_than_wrong() -> None:
    assert not math.isfinite(sigma_after(torch.full((64, 64), 1e38), 2))


def test_float16_at_the_edge_of_its_range() -> None:
    w = torch.full((48, 32), 6e4, dtype=torch.float16)
    assert sigma_after(w, 2) == pytest.approx(float(w[0, 0]) * math.sqrt(48 * 32), rel=ROUNDING)


def test_bfloat16_is_measured_as_stored() -> None:
    w = planted([1.0, 0.8, *torch.linspace(0.5, 0, 30).tolist()]).to(torch.bfloat16)
    assert sigma_after(w, 12) == pytest.approx(norm(w), rel=ROUNDING)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(64, 64), (20, 90), (3, 5)])
def test_a_weight_that_is_not_finite_says_so_and_heals(bad: float, shape: tuple[int, int]) -> None:
    clean, neighbour = gaussian(*shape), gaussian(*shape, seed=1)
    broken = clean.clone()
    broken[1, 2] = bad
    blocks = BlockPower([shape, shape], device=CPU)
    for _ in range(30):
        blocks.step_([Matrix(clean), Matrix(neighbour)])
    for _ in range(3):
        estimates = blocks.step_([Matrix(broken), Matrix(neighbour)])
        assert estimates.sigma.isnan().tolist() == [True, False]
        assert estimates.residual.isnan().tolist() == [True, False]
        assert float(estimates.sigma[1]) == pytest.approx(norm(neighbour), rel=1e-4)
    seen = [float(blocks.step_([Matrix(clean), Matrix(neighbour)]).sigma[0]) for _ in range(12)]
    true = norm(clean)
    assert all(s <= true * (1 + ROUNDING) for s in seen)
    assert seen[3] >= true * (1 - 1e-2)
    assert seen[7] >= true * (1 - 1e-3)


def test_a_weight_that_is_not_finite_from_the_start_heals_too() -> None:
    clean = gaussian(40, 40)
    blocks = BlockPower([(40, 40)], device=CPU)
    assert math.isnan(float(blocks.step_([Matrix(clean * math.nan)]).sigma))
    for _ in range(12):
        sigma = float(blocks.step_([Matrix(clean)]).sigma)
    assert sigma == pytest.approx(norm(clean), rel=1e-3)


def test_a_poisoned_saved_block_heals() -> None:
    w = gaussian(40, 40)
    blocks = BlockPower([(40, 40)], device=CPU)
    blocks.step_([Matrix(w)])
    state = blocks.state_dict()
    state["blocks"][0].fill_(math.nan)
    blocks.load_state_dict(state)
    for _ in range(12):
        sigma = float(blocks.step_([Matrix(w)]).sigma)
    assert sigma == pytest.approx(norm(w), rel=1e-3)


@pytest.mark.parametrize("exponent", [-60, 60])
def test_a_leap_in_scale_between_two_steps_is_measured_at_once(exponent: int) -> None:
    w = planted([1.0, 0.9, *torch.linspace(0.5, 0, 28).tolist()]).float()
    blocks = BlockPower([(30, 30)], device=CPU)
    for _ in range(10):
        blocks.step_([Matrix(w)])
    sigma = float(blocks.step_([Matrix(w * 2.0**exponent)]).sigma)
    assert sigma * 2.0**-exponent == pytest.approx(norm(w), rel=1e-5)


def steps_until_seen(r: float, *, refill: bool, n: int = 256, seeds: int = 24) -> list[int]:
    """Count steps until sigma is within 1 % of a new direction that the whole block misses.

    All seeds are layers of one call: their explorers restart at different steps.
    """
    weights = [planted(torch.linspace(1, 0, n), seed=s).float() for s in range(seeds)]
    blocks = BlockPower([(n, n)] * seeds, device=CPU)
    for _ in range(20):
        blocks.step_([Matrix(w) for w in weights])
    turned = [_turned(w, v, r) for w, v in zip(weights, blocks.state_dict()["blocks"], strict=True)]
    true = torch.tensor([norm(w) for w in turned])
    if refill:
        blocks.refill_(torch.ones(seeds, dtype=torch.bool))
    steps = [0] * seeds
    for step in range(1, 61):
        seen = blocks.step_([Matrix(w) for w in turned]).sigma >= 0.99 * true
        steps = [s or (step if ok else 0) for s, ok in zip(steps, seen.tolist(), strict=True)]
    return [s or 1000 for s in steps]


def _turned(w: Tensor, block: Tensor, r: float) -> Tensor:
    """Return w with a direction of norm r, orthogonal on both sides to what the block sees."""
    generator = torch.Generator().manual_seed(w.shape[0])
    v, u = torch.randn(2, w.shape[1], generator=generator)
    v, u = _apart(v, block.mT), _apart(u, w @ block.mT)
    return w - torch.outer(w @ v, v) + r * torch.outer(u, v)


def _apart(x: Tensor, from_NB: Tensor) -> Tensor:
    basis = torch.linalg.qr(from_NB).Q
    for _ in range(2):
        x = x - basis @ (basis.mT @ x)
    return x / x.norm()


@pytest.mark.parametrize("r", [1.69, 1.2])
def test_a_new_direction_is_found_by_the_explorer(r: float) -> None:
    steps = steps_until_seen(r, refill=False)
    assert median(steps) <= 14
    assert max(steps) <= 28


@pytest.mark.parametrize("r", [1.69, 1.2])
def test_refilling_the_block_finds_it_within_seven(r: float) -> None:
    assert max(steps_until_seen(r, refill=True)) <= 7


def test_refilling_keeps_the_best_vector_and_the_other_layers() -> None:
    weights = [planted(torch.linspace(1, 0, 60), seed=s).float() for s in range(2)]
    blocks = BlockPower([(60, 60)] * 2, device=CPU)
    for _ in range(40):
        before = blocks.step_([Matrix(w) for w in weights]).sigma
    states = [blocks.state_dict()["blocks"]]
    blocks.refill_(torch.tensor([True, False]))
    states.append(blocks.state_dict()["blocks"])
    first = [state[0][0] for state in states]
    torch.testing.assert_close(first[1], first[0] / first[0].norm(), rtol=0, atol=2e-5)
    assert not torch.equal(states[0][0][1:], states[1][0][1:])
    assert torch.equal(states[0][1], states[1][1])
    after = blocks.step_([Matrix(w) for w in weights]).sigma
    assert torch.all(after >= before * (1 - 1e-5))
