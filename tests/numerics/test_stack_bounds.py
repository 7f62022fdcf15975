"""The bound of a stack whose blocks are zero, tiny or single: a number that holds, never NaN."""

from __future__ import annotations

import math

import pytest
import torch
from spectra import gaussian, norm
from torch import Tensor, nn

from snc_client import SNCallback, certificate
from snc_client.bounds import bound
from snc_client.callback.monitor.carried_bounds import CarriedBounds
from snc_client.certificate import largest_upper, sigma_upper
from snc_client.gram import gram_bound
from snc_client.operators import BlockDiagonal, Matrix

# What pruning, initialisation and slicing leave of a block.
BLOCKS = {
    "zero": lambda block: 0 * block,
    "tiny": lambda block: 1e-30 * block,
    "subnormal": lambda block: 1e-42 * block,
    "one entry": lambda block: torch.zeros_like(block).index_put_(
        (torch.tensor([0]),) * 2, block[0, 0]
    ),
    "zero rows": lambda block: block * (torch.arange(len(block)) < 2).unsqueeze(1),
}


def largest(stack: Tensor) -> float:
    return max(norm(block) for block in stack)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_degenerate_block_leaves_a_bound_of_the_stack(kind: str, dtype: torch.dtype) -> None:
    for shape in ((3, 32, 16), (4, 8, 24), (1, 5, 5)):
        stack = torch.stack([gaussian(*shape[1:], seed=k) for k in range(shape[0])])
        stack[0] = BLOCKS[kind](stack[0])
        stack = stack.to(dtype)
        true = largest(stack)
        for sigma in (true, 0.5 * true, 1e-3 * true, 0.0, math.nan, math.inf):
            upper = float(largest_upper(stack, torch.tensor(sigma)))
            assert true <= upper <= max(1.02 * true, 2e-45)


def test_blocks_that_are_all_zero_or_tiny_are_bounded_too() -> None:
    assert float(largest_upper(torch.zeros(3, 8, 4), torch.tensor(math.nan))) == 0.0
    for scale in (1e-20, 1e-42):
        stack = torch.stack([gaussian(8, 4, seed=k) * scale for k in range(3)])
        stack[1] = 0
        true = largest(stack)
        assert true <= float(largest_upper(stack, torch.tensor(0.1 * true))) <= 1.02 * true + 2e-45


@pytest.mark.parametrize("squarings", [2, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_last_resort_holds_at_any_scale_of_the_gram_matrix(
    dtype: torch.dtype, squarings: int
) -> None:
    w = gaussian(40, 12).double()
    g, true = w.mT @ w, norm(w)
    zero = torch.zeros(5, 5, dtype=dtype)
    assert float(gram_bound(zero, squarings=squarings)) == 0.0
    exponents = (-40, -20, 0, 20, 30) if dtype == torch.float32 else (-300, -200, 0, 200, 290)
    for exponent in exponents:
        scaled = (g * 10.0 ** (exponent + 0.0)).to(dtype)
        exact = float(torch.linalg.eigvalsh(scaled.double() * 10.0**-exponent)[-1]) ** 0.5
        found = float(gram_bound(scaled, squarings=squarings).double()) / 10.0 ** (exponent / 2)
        assert exact * (1 - 1e-6) <= found <= 1.4 * exact
        assert exact == pytest.approx(true, rel=1e-2)
    assert math.isnan(float(gram_bound(torch.full((3, 3), math.nan, dtype=dtype))))


def test_a_last_resort_that_fails_is_replaced_by_the_frobenius_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w = gaussian(20, 12)
    monkeypatch.setattr(certificate, "gram_bound", lambda g, **_: g.new_full((), math.nan))
    upper = float(sigma_upper(w, torch.tensor(0.1)))
    frobenius = float(torch.linalg.vector_norm(w.double()))
    assert frobenius <= upper <= frobenius * (1 + 1e-5)
    w[0, 0] = math.nan
    assert float(sigma_upper(w, torch.tensor(0.1))) == math.inf


def test_groups_that_are_factored_one_by_one_are_bounded_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a GPU, where a batch of factorizations would make the host wait."""
    stack = torch.stack([gaussian(16, 9, seed=k) for k in range(3)])
    stack[1] = 0
    stack[2] *= 1e-30
    true = largest(stack)
    each = [sigma_upper(block, torch.tensor(0.3 * true)) for block in stack]
    assert true <= float(torch.stack(each).amax()) <= 1.02 * true
    assert true <= float(bound(BlockDiagonal(stack), torch.tensor(true))) <= 1.002 * true


def test_the_bound_carried_from_a_weight_that_was_not_finite_is_the_frobenius_norm() -> None:
    carried = CarriedBounds(2, torch.device("cpu"))
    weight = gaussian(12, 8)
    broken = weight.clone()
    broken[0, 0] = math.nan
    carried.certified(1, Matrix(broken), torch.tensor(math.inf))
    upper = float(carried.bounds({1: Matrix(weight)})[1])
    assert upper == pytest.approx(float(torch.linalg.vector_norm(weight.double())), rel=1e-4)
    assert upper >= norm(weight)
    assert [carried.known(i) for i in (0, 1)] == [False, True]


@pytest.mark.parametrize("seen_late", [False, True])
@pytest.mark.parametrize("pruned", ["zero", "tiny"])
def test_strict_holds_a_grouped_convolution_of_which_a_group_is_pruned(
    monkeypatch: pytest.MonkeyPatch, pruned: str, seen_late: bool
) -> None:
    """A new direction of another group, which sigma has not met, at the same step."""
    if seen_late:
        monkeypatch.setattr(
            "snc_client.callback.monitor.device_group.reading_is_free", lambda device: False
        )
    torch.manual_seed(0)
    conv = nn.Conv1d(48, 48, 1, groups=3, bias=False)
    threshold = 1.3 * largest(conv.weight.detach().view(3, 16, 16))
    with SNCallback(nn.Sequential(conv), threshold=threshold, strict=True) as callback:
        for step in range(12):
            with torch.no_grad():
                blocks = conv.weight.view(3, 16, 16)
                if step == 3:
                    blocks[1].mul_(0.0 if pruned == "zero" else 1e-30)
                if step == 6:
                    u, _, vh = torch.linalg.svd(blocks[2])
                    blocks[2].add_(2 * threshold * torch.outer(u[:, -1], vh[-1]))
            callback.step()
            assert largest(conv.weight.detach().view(3, 16, 16)) <= threshold * (1 + 1e-6)
    assert callback.errors == 0


def test_strict_never_divides_by_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a certificate answers: without a bound the weight keeps every bit."""
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    with SNCallback(model, threshold=1e-3, strict=True, action="observe") as callback:
        before = model[0].weight.detach().clone()
        monkeypatch.setattr(
            "snc_client.callback.monitor.device_group.last_bound",
            lambda operator, sigma: torch.full_like(sigma, math.nan),
        )
        callback._monitor.set_policy(
            [type(p)(p.factor, p.unit, "rescale") for p in callback._monitor._policies], step=0
        )
        callback.step()
    assert torch.equal(model[0].weight, before)
    assert callback.errors == 0
