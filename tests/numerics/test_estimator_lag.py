"""A block that lags behind an abrupt step: more iterations then, one when all is quiet."""

from __future__ import annotations

import pytest
import torch
from no_host_sync import NoHostSync
from spectra import gaussian, norm, planted
from torch import Tensor

from snc_client.estimator import BlockPower
from snc_client.operators import Matrix

CPU = torch.device("cpu")
QUIET = planted(torch.cat([torch.tensor([1.0, 0.8]), torch.linspace(0.5, 0.0, 94)])).float()


@pytest.fixture
def _the_host_may_not_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snc_client.estimator.block_power.reading_is_free", lambda device: False)


def power(*weights: Tensor) -> tuple[BlockPower, list[Matrix]]:
    shapes = [(w.shape[0], w.shape[1]) for w in weights]
    return BlockPower(shapes, device=CPU), [Matrix(w) for w in weights]


def iterations(blocks: BlockPower, operators: list[Matrix]) -> list[int]:
    """Return how many iterations a call makes, layer by layer."""
    before = blocks.state_dict()["steps"]
    blocks.step_(operators)
    return [a - b for a, b in zip(blocks.state_dict()["steps"], before, strict=True)]


def shaken(w: Tensor, size: float, seed: int) -> Tensor:
    """Return w after a random change of spectral norm ``size``: a first step of Adam is one."""
    change = gaussian(*w.shape, seed=seed)
    return w + size * change / norm(change)


def test_a_quiet_layer_costs_one_iteration_a_call() -> None:
    blocks, operators = power(QUIET, QUIET.T)
    blocks.step_(operators)
    assert [iterations(blocks, operators) for _ in range(20)] == [[1, 1]] * 20


@pytest.mark.parametrize("size", [0.3, 1.0])
def test_after_an_abrupt_step_sigma_is_near_at_once(size: float) -> None:
    # One iteration from the old block errs by up to 1.1e-3 (0.3) and 3e-2 (1.0) here.
    allowed = {0.3: 1e-4, 1.0: 1e-3}[size]
    for seed in range(8):
        blocks, operators = power(QUIET)
        for _ in range(10):
            blocks.step_(operators)
        moved = shaken(QUIET, size, seed=seed)
        sigma = float(blocks.step_([Matrix(moved)]).sigma)
        assert norm(moved) * (1 - allowed) <= sigma <= norm(moved) * (1 + 2e-6)


def test_only_the_layer_that_moved_costs_more() -> None:
    blocks, operators = power(QUIET, QUIET, QUIET.T)
    for _ in range(10):
        blocks.step_(operators)
    operators[1] = Matrix(shaken(QUIET, 1.0, seed=3))
    quiet, moved, other = iterations(blocks, operators)
    assert quiet == other == 1
    assert 2 <= moved <= 4


def test_a_layer_that_is_not_finite_costs_no_more() -> None:
    blocks, operators = power(QUIET)
    for _ in range(3):
        blocks.step_(operators)
    assert iterations(blocks, [Matrix(QUIET * torch.nan)]) == [1]


def test_a_layer_met_later_than_the_others_has_its_cold_start_too() -> None:
    weights = [QUIET, gaussian(40, 30), QUIET.T]
    blocks, operators = power(*weights)
    blocks.step_(operators[:1], [0])
    sigma = blocks.step_(operators).sigma
    assert sigma.tolist() == pytest.approx([norm(w) for w in weights], rel=5e-3)


@pytest.mark.usefixtures("_the_host_may_not_look")
def test_where_the_host_may_not_look_the_first_calls_make_four() -> None:
    blocks, operators = power(QUIET, gaussian(60, 60))
    with NoHostSync():
        made = [iterations(blocks, operators) for _ in range(40)]
    assert made[0] == [16, 16]
    assert made[1:33] == [[4, 4]] * 32
    assert made[33:] == [[1, 1]] * 7


@pytest.mark.usefixtures("_the_host_may_not_look")
def test_what_the_host_learns_late_hurries_the_next_call_and_no_other() -> None:
    blocks, operators = power(QUIET, QUIET)
    for _ in range(40):
        blocks.step_(operators)
    blocks.hurry([1])
    assert iterations(blocks, operators) == [1, 4]
    assert iterations(blocks, operators) == [1, 1]
