from __future__ import annotations

import io

import pytest
import torch
from no_host_sync import NoHostSync
from spectra import SPECTRA, gaussian, norm, planted, singular_values
from torch import Tensor

from snc_client.estimator import BlockPower
from snc_client.operators import Matrix

CPU = torch.device("cpu")
ROUNDING = 2e-6  # how far float32 products can lift sigma above the truth


def power(*weights: Tensor, block: int = 16, seed: int = 0) -> tuple[BlockPower, list[Matrix]]:
    shapes = [(w.shape[0], w.shape[1]) for w in weights]
    return BlockPower(shapes, device=CPU, block=block, seed=seed), [Matrix(w) for w in weights]


@pytest.mark.parametrize(("block", "closest"), [(8, 3e-3), (16, 2e-3)])
def test_sigma_never_exceeds_the_spectral_norm_and_closes_in_on_it(
    block: int, closest: float
) -> None:
    # All spectra at once, tall and square. A plateau wider than the block converges slowest.
    weights = [planted(s, m).float() for s in SPECTRA.values() for m in (96, 250)]
    true = torch.tensor([norm(w) for w in weights])
    blocks, operators = power(*weights, block=block)
    for _ in range(60):
        sigma = blocks.step_(operators).sigma
        assert torch.all(sigma <= true * (1 + ROUNDING)), sigma / true - 1
    assert torch.all(sigma >= true * (1 - closest)), sigma / true - 1


@pytest.mark.parametrize("gap", [0.5, 0.9])
def test_a_gap_below_the_block_gives_all_digits(gap: float) -> None:
    # Block power converges with the ratio of the (b+1)-th singular value to the first: gap^4
    # each step, as an error of sigma.
    values = torch.cat([torch.linspace(1.0, 0.95, 16), torch.linspace(gap, 0.0, 80)])
    w = planted(values, 120).float()
    blocks, operators = power(w)
    for _ in range(40):
        sigma = blocks.step_(operators).sigma
    assert float(sigma) == pytest.approx(norm(w), rel=ROUNDING)


def test_the_first_call_makes_a_cold_start() -> None:
    # One iteration from a random block is 10 % and more off on a Gaussian.
    weights = [gaussian(192, 192, seed=seed) for seed in range(4)]
    blocks, operators = power(*weights)
    sigma = blocks.step_(operators).sigma
    true = torch.tensor([norm(w) for w in weights])
    assert torch.all(sigma >= true * 0.995)


def test_tall_wide_and_transposed_views_agree() -> None:
    w = gaussian(150, 40)
    blocks, operators = power(w, w.T, w.T.contiguous())
    sigma = blocks.step_(operators).sigma
    torch.testing.assert_close(sigma, sigma[:1].expand(3), rtol=1e-3, atol=0)
    for _ in range(30):
        sigma = blocks.step_(operators).sigma
    assert sigma.tolist() == pytest.approx([norm(w)] * 3, rel=ROUNDING)


def test_some_singular_value_lies_within_the_residual() -> None:
    weights = [planted(s, m).float() for s in SPECTRA.values() for m in (96, 130)]
    blocks, operators = power(*weights)
    for _ in range(12):
        estimates = blocks.step_(operators)
        for w, sigma, residual in zip(
            weights, estimates.sigma.tolist(), estimates.residual.tolist(), strict=True
        ):
            nearest = float((singular_values(w) - sigma).abs().min())
            s = (sigma**2 - residual**2) ** 0.5  # ||W v||, half a step before sigma
            reach = residual / 2**0.5 + residual**2 / (2 * s)
            assert nearest <= reach + ROUNDING * sigma


def test_the_residual_vanishes_when_sigma_is_right_and_not_before() -> None:
    w = planted(torch.linspace(1.0, 0.2, 90)).float()
    blocks, operators = power(w)
    first = float(blocks.step_(operators).residual)
    for _ in range(120):
        last = float(blocks.step_(operators).residual)
    assert first > 1e-3
    assert last < 3e-6


@pytest.mark.parametrize("name", ["one above a plateau", "sixty within two percent", "power law"])
def test_restarting_the_explorer_leaves_no_saw_tooth(name: str) -> None:
    blocks, operators = power(planted(SPECTRA[name]).float())
    for _ in range(20):
        blocks.step_(operators)
    seen = torch.cat([blocks.step_(operators).sigma for _ in range(40)])
    assert torch.all(seen[1:] >= seen[:-1] * (1 - ROUNDING))


def test_only_the_chosen_layers_advance_and_results_keep_their_order() -> None:
    weights = [gaussian(60, 50, seed=1), gaussian(30, 70, seed=2), gaussian(60, 50, seed=3)]
    alone, together = power(*weights), power(*weights)
    one_by_one = [alone[0].step_([alone[1][i]], [i]).sigma for i in (2, 0, 1)]
    before = together[0].state_dict()["blocks"][1]
    some = together[0].step_([together[1][2], together[1][0]], [2, 0]).sigma
    assert torch.equal(together[0].state_dict()["blocks"][1], before)
    assert torch.equal(some, torch.cat(one_by_one[:2]))


def test_equal_seeds_give_equal_bits_and_other_seeds_other_blocks() -> None:
    w = gaussian(64, 48)
    runs = [power(w, seed=seed) for seed in (5, 5, 6)]
    seen = [torch.stack([b.step_(ops).sigma for _ in range(10)]) for b, ops in runs]
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_the_global_random_state_is_neither_read_nor_advanced() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    blocks, operators = power(gaussian(40, 40))
    a = [float(blocks.step_(operators).sigma) for _ in range(17)]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    blocks, operators = power(gaussian(40, 40))
    assert [float(blocks.step_(operators).sigma) for _ in range(17)] == a


def test_weights_are_read_without_gradient_and_never_written() -> None:
    w = torch.nn.Parameter(gaussian(50, 60))
    before, version = w.detach().clone(), w._version
    blocks, operators = power(w)
    estimates = blocks.step_(operators)
    assert not estimates.sigma.requires_grad
    assert torch.equal(w, before)
    assert w._version == version


def test_the_host_never_waits() -> None:
    weights = [gaussian(64, 32), gaussian(32, 64), gaussian(1, 9), gaussian(20, 32)]
    weights[3][0, 0] = torch.nan
    blocks, operators = power(*weights)
    with NoHostSync():
        for _ in range(10):
            blocks.step_(operators)
            blocks.refill_(torch.tensor([True, False, True, False]))


def test_a_step_of_72_layers_stays_within_its_budget_of_operations() -> None:
    # Per layer two products with W, one Gram matrix and their views; the rest is shared.
    d = 32
    shapes = [(3 * d, d), (d, d), (4 * d, d), (d, 4 * d)] * 18
    blocks, operators = power(*(gaussian(*shape, seed=i) for i, shape in enumerate(shapes)))
    for _ in range(8):
        blocks.step_(operators)
        with NoHostSync() as counted:
            blocks.step_(operators)
        assert counted.operations["aten.mm.default"] <= 3 * 72 + 4 * (72 // 8 + 1)
        assert sum(counted.operations.values()) <= 30 * 72


def test_low_precision_allowed_for_the_job_does_not_reach_sigma() -> None:
    w = gaussian(256, 256)
    blocks, operators = power(w)
    plain = [float(blocks.step_(operators).sigma) for _ in range(3)]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            blocks, operators = power(w)
            assert [float(blocks.step_(operators).sigma) for _ in range(3)] == plain
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_saved_state_continues_to_the_bit() -> None:
    weights = [gaussian(40, 24, seed=1), gaussian(8, 30, seed=2)]
    blocks, operators = power(*weights, seed=3)
    for _ in range(5):
        blocks.step_(operators)
    file = io.BytesIO()
    torch.save(blocks.state_dict(), file)
    assert file.tell() < 4 * (24 * 16 + 8 * 8) + 8192  # 16 floats per row of the small side
    file.seek(0)
    resumed, _ = power(*weights, seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(12):
        expected, got = blocks.step_(operators), resumed.step_(operators)
        assert torch.equal(expected.sigma, got.sigma)
        assert torch.equal(expected.residual, got.residual)


def test_a_state_does_not_share_memory_with_its_owner() -> None:
    blocks, operators = power(gaussian(30, 30))
    blocks.step_(operators)
    state = blocks.state_dict()
    for block in state["blocks"]:
        block.fill_(0.0)
    assert float(blocks.step_(operators).residual) < float(gaussian(30, 30).norm())
    assert float(blocks.state_dict()["blocks"][0].norm()) > 1


def test_the_state_of_other_layers_is_refused_and_changes_nothing() -> None:
    blocks, operators = power(gaussian(30, 20))
    sigma = blocks.step_(operators).sigma
    other, _ = power(gaussian(30, 21))
    smaller, _ = power(gaussian(30, 20), block=4)
    before = blocks.state_dict()
    for state in (other.state_dict(), smaller.state_dict(), {**before, "steps": []}):
        with pytest.raises(ValueError, match="of the state must be"):
            blocks.load_state_dict(state)
    assert torch.equal(blocks.state_dict()["blocks"][0], before["blocks"][0])
    assert float(blocks.step_(operators).sigma) >= float(sigma) * (1 - ROUNDING)


def test_arguments_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match="block must be at least 2, got 1"):
        BlockPower([(3, 3)], device=CPU, block=1)
    with pytest.raises(ValueError, match=r"shapes\[1\] must be .* got \(4, 0\)"):
        BlockPower([(3, 3), (4, 0)], device=CPU)
    blocks, operators = power(gaussian(4, 5), gaussian(4, 5))
    with pytest.raises(ValueError, match="operators must be 2"):
        blocks.step_(operators[:1])
    with pytest.raises(ValueError, match=r"shape of layer 1 must be \(4, 5\), got \(5, 4\)"):
        blocks.step_([operators[0], Matrix(gaussian(5, 4))])


def test_no_layers_is_no_trouble() -> None:
    estimates = BlockPower([], device=CPU).step_([])
    assert estimates.sigma.shape == estimates.residual.shape == (0,)
