"""The numerics on a GPU: no step waits for the host, and the answers are those of the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from spectra import gaussian, norm, planted

from snc_client.certificate import certify, sigma_upper
from snc_client.constraint import cap_, rescale_
from snc_client.estimator import BlockPower, jacobi
from snc_client.estimator.graph import GraphPower
from snc_client.estimator.solvers import PLAIN, agrees, solvers
from snc_client.operators import Matrix

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHAPES = [(96, 64), (64, 96), (300, 64), (5, 9)]


@pytest.fixture(autouse=True)
def _unproven_paths_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNC_TRITON", "1")
    monkeypatch.setenv("SNC_CUDA_GRAPH", "1")
    solvers.cache_clear()


@pytest.fixture
def _waiting_is_an_error() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("_waiting_is_an_error")
def test_measuring_certifying_and_constraining_never_wait() -> None:
    device = torch.device("cuda")
    weights = [gaussian(*shape, seed=i).to(device) for i, shape in enumerate(SHAPES)]
    operators = [Matrix(w) for w in weights]
    blocks = BlockPower(SHAPES, device=device)
    threshold = torch.full((len(SHAPES),), 0.5, device=device)
    lost = torch.zeros(len(SHAPES), dtype=torch.bool, device=device)
    blocks.step_(operators)
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(10):
        sigma = blocks.step_(operators).sigma
        upper = torch.stack([sigma_upper(w, s) for w, s in zip(weights, sigma, strict=True)])
        rescale_(weights, upper, threshold)
    blocks.refill_(lost)
    cap_(weights[0], upper[0], threshold[0] / 2)


def test_sigma_and_certificates_are_those_of_the_cpu() -> None:
    values = torch.cat([torch.tensor([1.0, 0.9]), torch.linspace(0.5, 0.0, 62)])
    w = planted(values, 200).float()
    true = norm(w)
    blocks = BlockPower([(200, 64)], device=torch.device("cuda"))
    on_device = w.cuda()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")  # TF32 alone would err by 4e-4
        for _ in range(12):
            sigma = blocks.step_([Matrix(on_device)]).sigma
    finally:
        torch.set_float32_matmul_precision(before)
    assert float(sigma) == pytest.approx(true, rel=2e-6)
    assert true <= float(sigma_upper(on_device, sigma[0])) <= true * (1 + 1.1e-3)
    assert certify(on_device, true * (1 + 1e-5))
    assert not certify(on_device, true * (1 - 1e-5))


def test_jacobi_agrees_with_lapack_on_the_device() -> None:
    assert agrees(PLAIN._replace(eigh=jacobi.eigh), torch.device("cuda"))


def test_tritons_kernels_are_compiled_checked_and_used() -> None:
    assert solvers(torch.zeros((), device="cuda").device).one_launch


@pytest.mark.usefixtures("_waiting_is_an_error")
def test_the_graph_replays_the_plain_way_without_a_wait() -> None:
    device = torch.device("cuda")
    weights = [gaussian(*shape, seed=i).to(device) for i, shape in enumerate(SHAPES)]
    plain, graph = (kind(SHAPES, device=device) for kind in (BlockPower, GraphPower))
    for step in range(50):
        for w in weights:
            w.mul_(1.01)
        if step == 44:
            torch.cuda.set_sync_debug_mode("default")
            weights[1] = weights[1].clone()  # another address
        operators = [Matrix(w) for w in weights]
        expected, found = plain.step_(operators).sigma, graph.step_(operators).sigma
        assert graph.recordings == (0 if step == 0 else 1 if step < 44 else 2)
        torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
        torch.cuda.set_sync_debug_mode("error" if 1 < step < 43 else "default")


def test_a_nan_weight_is_bounded_by_infinity_where_cholesky_reports_no_failure() -> None:
    poisoned = torch.full((64, 64), torch.nan, device="cuda")
    assert sigma_upper(poisoned, torch.ones((), device="cuda")).isposinf()
    assert not certify(poisoned, 1e30)
    one = gaussian(64, 64).cuda()
    one[3, 5] = torch.nan
    assert sigma_upper(one, torch.ones((), device="cuda")).isposinf()
