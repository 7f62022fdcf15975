"""Adapters of PEFT: what is trained beside a frozen model is held, and what is added is seen."""

import pytest
import torch
from integration_cases import spectral_norm
from torch import nn

peft = pytest.importorskip("peft", reason="install the extra [frameworks] to test PEFT")

from snc_client import SNCallback  # noqa: E402

PATH = "base_model.model.0"


def adapter(rank: int) -> "peft.LoraConfig":
    return peft.LoraConfig(r=rank, target_modules=["0"], init_lora_weights=False)


def product(model: nn.Module, name: str) -> float:
    """Return the norm of B A of one adapter, by float64 SVD."""
    module = model.get_submodule(PATH)
    return spectral_norm(module.lora_B[name].weight.double() @ module.lora_A[name].weight.double())


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 9).square().mean().backward()
        optimizer.step()


def trained(rank: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    model = peft.get_peft_model(plain, adapter(rank))
    own = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model, torch.optim.SGD(own, lr=0.3)


def add_second(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.add_adapter("second", adapter(2))
    model.set_adapter("second")
    added = [parameter for name, parameter in model.named_parameters() if ".second." in name]
    optimizer.add_param_group({"params": added})


def test_each_adapter_is_held_by_its_own_product():
    model, optimizer = trained(4)
    with SNCallback(model, optimizer=optimizer, threshold="1.2x init", idle_every=1) as callback:
        train(model, optimizer, 12)
        first = callback.latest[f"{PATH}.lora_B.default.weight[BA]"]
        assert product(model, "default") == pytest.approx(first["threshold"], rel=1e-3)
        add_second(model, optimizer)
        callback.rescan()
        kept = product(model, "default")
        train(model, optimizer, 12)
    second = callback.latest[f"{PATH}.lora_B.second.weight[BA]"]
    assert product(model, "second") == pytest.approx(second["threshold"], rel=1e-3)
    assert product(model, "default") == kept


def test_a_second_adapter_is_seen_at_the_next_measurement():
    model, optimizer = trained(4)
    with SNCallback(model, optimizer=optimizer, threshold="1.2x init", idle_every=1) as callback:
        train(model, optimizer, 2)
        add_second(model, optimizer)
        train(model, optimizer, 1)
        assert f"{PATH}.lora_B.second.weight[BA]" in {x.name for x in callback.layers.layers}
