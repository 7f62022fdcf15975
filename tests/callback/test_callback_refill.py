"""A warm block that has lost the top singular direction is replaced once a certificate shows it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from snc_client.callback.model.master_weights import Masters
from snc_client.callback.monitor.device_group import DeviceGroup
from snc_client.callback.monitor.step_plan import StepPlan
from snc_client.layers import find_layers

N, BLOCK = 64, 8


def block_after_a_step(top: float, *, certify: bool) -> Tensor:
    """Return the block of a matrix of norm ``top``, which starts orthogonal to the top direction.

    The second singular value, which the block holds, is 1.
    """
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((N, N)))[0] for _ in range(2))
    values = np.array([top, 1.0, *np.linspace(0.5, 0.1, N - 2)])
    model = nn.Linear(N, N, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor((u * values) @ v.T))
        group = DeviceGroup(
            find_layers(model).layers,
            [0],
            torch.device("cpu"),
            block=BLOCK,
            masters=Masters(model),
        )
        state = group.power.state_dict()
        state["blocks"] = [torch.tensor(v[:, 1 : 1 + BLOCK].T.copy(), dtype=torch.float32)]
        state["steps"] = [33]
        group.power.load_state_dict(state)
        yes, no = np.array([True]), np.array([False])
        row = group.step(
            StepPlan(
                measured=yes,
                certified=yes if certify else no,
                capped=no,
                pressing=no,
                idle=no,
                written=yes,
                all_gradients=False,
            ),
            {},
        )
        assert float(row.sigma) == pytest.approx(1.0, rel=2e-3), "the top direction is lost"
    return group.power.state_dict()["blocks"][0]


@pytest.mark.parametrize(("top", "is_refilled"), [(1.005, False), (1.03, True)])
def test_a_block_is_refilled_where_the_certificate_lies_more_than_a_per_cent_above(
    top, is_refilled
):
    before, after = (block_after_a_step(top, certify=x) for x in (False, True))
    assert torch.equal(before, after) is not is_refilled
    assert torch.allclose(before[:1], after[:1], atol=1e-6), "the best vector is kept"
