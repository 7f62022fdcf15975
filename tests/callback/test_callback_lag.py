"""In the first steps without a warm-up the warm blocks lag: held all the same, by float64 SVD."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_loops import norms
from torch import nn

from snc_client import SNCallback
from snc_client.estimator import LAG

WIDTH, STEPS, LR = 512, 4, 3e-3


@pytest.fixture
def read_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the host not look at the device's values: it learns of them a step later."""
    for module in ("estimator.block_power", "callback.monitor.device_group"):
        monkeypatch.setattr(f"snc_client.{module}.reading_is_free", lambda device: False)


def from_the_start(action: str = "rescale") -> tuple[list[float], list[dict[str, object]]]:
    """Train from the first step at the threshold; return every norm, and every reading.

    The layers start at a norm of 1, their threshold. AdamW moves them by up to 1.5 in that norm,
    in few directions, from the first step on.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
    with torch.no_grad():
        for name, norm in norms(model).items():
            model.get_parameter(name).div_(norm)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    inputs, targets = torch.randn(64, WIDTH), torch.randn(64, WIDTH)
    after, readings = [], []
    with SNCallback(model, threshold=1.0, action=action) as callback:
        for _ in range(STEPS):
            optimizer.zero_grad()
            F.mse_loss(model(inputs), targets).backward()
            optimizer.step()
            callback.step()
            found = norms(model)
            after += found.values()
            readings += [dict(callback.latest[name]) for name in found]
        assert callback.errors == 0
    return after, readings


@pytest.mark.parametrize("action", ["rescale", "normalize"])
def test_a_layer_at_its_threshold_is_certified_while_its_block_lags(action: str) -> None:
    after, readings = from_the_start(action)
    assert max(after) <= 1.0005
    lagging = [x for x in readings if x["residual"] > LAG * x["sigma"]]
    assert lagging, "a training that never lags shows nothing"
    assert {x["sigma_upper_from"] for x in lagging} == {"certified"}


@pytest.mark.usefixtures("read_late")
def test_the_margin_of_a_lagging_block_covers_its_error_where_the_host_cannot_look() -> None:
    after, _ = from_the_start()
    assert max(after) <= 1.001
