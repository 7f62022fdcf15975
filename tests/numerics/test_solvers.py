"""Which b x b algebra a device gets, and that kernels are not trusted before they are checked."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from spectra import gaussian
from torch import Tensor

from snc_client.estimator import jacobi
from snc_client.estimator.solvers import (
    LAPACK,
    PLAIN,
    Solvers,
    agrees,
    lapack_inverse_factor,
    solvers,
)

CPU = torch.device("cpu")


def test_the_cpu_has_lapack_and_a_device_without_triton_plain_operations() -> None:
    assert solvers(CPU) is LAPACK
    assert solvers(torch.device("meta")) is PLAIN


def test_triton_is_used_on_a_cuda_device_only_where_it_is_asked_for(monkeypatch) -> None:
    kernels = SimpleNamespace(eigh=LAPACK.eigh, inverse_factor=LAPACK.inverse_factor)
    monkeypatch.setitem(sys.modules, "snc_client.estimator.kernels", kernels)
    monkeypatch.setattr("snc_client.estimator.solvers.find_spec", lambda name: object())
    monkeypatch.setattr("snc_client.estimator.solvers.agrees", lambda found, device: True)
    for asked in ("", "0", "1"):
        monkeypatch.setenv("SNC_TRITON", asked)
        # Without the cache, which keeps the first answer of the process.
        assert solvers.__wrapped__(torch.device("cuda")).one_launch == (asked == "1")
    monkeypatch.delenv("SNC_TRITON")
    assert solvers.__wrapped__(torch.device("cuda")) is PLAIN


@pytest.mark.parametrize("found", [LAPACK, PLAIN])
def test_sound_solvers_pass_the_check(found: Solvers) -> None:
    assert agrees(found, CPU)


def _no_rotation(g: Tensor) -> tuple[Tensor, Tensor]:
    return g.diagonal(dim1=-2, dim2=-1), torch.eye(g.shape[-1]).expand_as(g)


def _descending(g: Tensor) -> tuple[Tensor, Tensor]:
    values, z = torch.linalg.eigh(g)
    return values.flip(-1), z.flip(-1)


def _rows(g: Tensor) -> tuple[Tensor, Tensor]:
    values, z = torch.linalg.eigh(g)
    return values, z.mT.contiguous()


@pytest.mark.parametrize("wrong", [_no_rotation, _descending, _rows])
def test_wrong_eigenvectors_do_not_pass(wrong: object) -> None:
    assert not agrees(LAPACK._replace(eigh=wrong), CPU)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda c: torch.eye(c.shape[-1]).expand_as(c),
        lambda c: torch.linalg.cholesky_ex(c).L.tril().add(1e-3),
        lambda c: lapack_inverse_factor(c).mT,
        lambda c: torch.linalg.cholesky_ex(c).L,
    ],
)
def test_wrong_factors_do_not_pass(wrong: object) -> None:
    assert not agrees(LAPACK._replace(inverse_factor=wrong), CPU)


def test_a_matrix_without_a_factor_gives_the_identity() -> None:
    c = torch.stack([torch.eye(3), -torch.eye(3), torch.full((3, 3), torch.nan)])
    assert torch.equal(lapack_inverse_factor(c), torch.eye(3).expand(3, 3, 3))


def test_eigenvalues_and_their_vectors_are_sorted_together() -> None:
    g = gaussian(6, 6)
    values, z = jacobi.ascending(torch.tensor([[2.0, -1.0, 3.0, 0.0, 5.0, 4.0]]), g.unsqueeze(0))
    assert values.tolist() == [[-1, 0, 2, 3, 4, 5]]
    assert torch.equal(z[0], g[:, [1, 3, 0, 2, 5, 4]])


IN_THE_INTERPRETER = """
import torch
from snc_client.estimator import kernels
from snc_client.estimator.solvers import Solvers, agrees
print(agrees(Solvers(kernels.eigh, kernels.inverse_factor, one_launch=True), torch.device("cpu")))
"""


@pytest.mark.skipif(
    find_spec("triton") is None, reason="needs Triton: pip install triton, it runs without a GPU"
)
def test_the_kernels_pass_in_tritons_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_THE_INTERPRETER],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parent,
    )
    assert done.stdout.split() == ["True"], done.stderr
