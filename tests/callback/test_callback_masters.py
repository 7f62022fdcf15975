"""Mixed precision: the master is what is held, and the copy that the model uses follows."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from no_host_sync import NoHostSync
from small_loops import norms, spectral_norm
from torch import Tensor, nn

from snc_client import SNCallback

LIMIT = 0.8


def low_model(*layers: nn.Module, dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(layers or (nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 6)))).to(dtype)


def masters_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().float().clone() for name, p in model.named_parameters()}


def backward(model: nn.Module) -> None:
    model.zero_grad()
    for parameter in model.parameters():
        # Growth along the weight itself, plus noise: the threshold is active at every step.
        parameter.grad = -0.2 * parameter.detach() + 0.05 * torch.randn_like(parameter)


def step_masters(model: nn.Module, masters: dict[str, Tensor]) -> None:
    """Step the masters in full precision; the copies are cast by whoever calls this."""
    for name, parameter in model.named_parameters():
        masters[name].sub_(parameter.grad.float())


def cast(model: nn.Module, masters: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(masters[name])


class WithMasters(torch.optim.Optimizer):
    """SGD that keeps a float32 master of each parameter in its state, and casts it down."""

    def __init__(self, parameters, key: str) -> None:
        super().__init__(parameters, {"lr": 1.0})
        self._key = key

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                master = self.state[p].setdefault(self._key, p.detach().float().clone())
                master.sub_(p.grad.float(), alpha=group["lr"])
                p.copy_(master)


def worst_during(model: nn.Module, step, callback: SNCallback, steps: int = 12) -> float:
    """Return the largest spectral norm of a stored matrix after any of the steps."""
    worst = 0.0
    for _ in range(steps):
        backward(model)
        step()
        worst = max(worst, *norms(model).values())
    callback.close()
    assert callback.errors == 0
    return worst


@pytest.mark.parametrize("action", ["rescale", "cap"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strict", [False, True])
def test_given_masters_are_held_and_the_copies_land_under_the_threshold(action, dtype, strict):
    model = low_model(dtype=dtype)
    masters = masters_of(model)
    callback = SNCallback(model, threshold=LIMIT, action=action, strict=strict, masters=masters)

    def step() -> None:
        step_masters(model, masters)
        cast(model, masters)
        with NoHostSync():
            callback.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, masters[name].to(dtype))

    assert 0.98 * LIMIT < worst_during(model, step, callback) <= LIMIT
    assert all(spectral_norm(masters[name]) <= LIMIT for name in norms(model))


def test_without_them_the_copies_are_back_above_the_threshold_at_the_next_step():
    model = low_model()
    masters = masters_of(model)
    callback = SNCallback(model, threshold=LIMIT)
    for _ in range(3):
        backward(model)
        step_masters(model, masters)
        cast(model, masters)
        callback.step()
    callback.close()
    assert max(spectral_norm(masters[name]) for name in norms(model)) > 1.5 * LIMIT


def test_a_loop_that_casts_only_after_the_optimizers_step_is_held_too():
    model = low_model()
    masters = {name: nn.Parameter(value) for name, value in masters_of(model).items()}
    optimizer = torch.optim.SGD(masters.values(), lr=1.0)
    callback = SNCallback(model, threshold=LIMIT, masters=masters, optimizer=optimizer)

    def step() -> None:
        for name, parameter in model.named_parameters():
            masters[name].grad = parameter.grad.float()
        optimizer.step()  # the callback's hook runs here, before the cast
        cast(model, masters)

    assert worst_during(model, step, callback) <= LIMIT


def test_a_parameter_may_be_the_key_and_a_master_may_be_flat():
    model = low_model()
    flat = {p: p.detach().float().reshape(-1).clone() for p in model.parameters()}
    callback = SNCallback(model, threshold=LIMIT, masters=flat)

    def step() -> None:
        with torch.no_grad():
            for parameter, master in flat.items():
                master.sub_(parameter.grad.float().reshape(-1))
                parameter.copy_(master.view(parameter.shape))
        callback.step()

    assert worst_during(model, step, callback) <= LIMIT


@pytest.mark.parametrize("key", ["master_param", "master", "fp32_param"])
def test_masters_in_the_optimizers_state_are_found(key):
    model = low_model()
    optimizer = WithMasters(model.parameters(), key)
    callback = SNCallback(model, threshold=LIMIT, optimizer=optimizer)
    assert worst_during(model, optimizer.step, callback) <= LIMIT
    for weight in (model[0].weight, model[2].weight):
        master = optimizer.state[weight][key]
        assert spectral_norm(master) <= LIMIT
        assert torch.equal(weight, master.bfloat16())


def test_the_pairs_of_amp_are_found():
    model = low_model()
    copies = list(model.parameters())
    masters = [nn.Parameter(p.detach().float()) for p in copies]
    optimizer = torch.optim.SGD(masters, lr=1.0)
    optimizer._amp_stash = SimpleNamespace(
        all_fp16_params=copies, all_fp32_from_fp16_params=masters
    )
    callback = SNCallback(model, threshold=LIMIT, optimizer=optimizer)

    def step() -> None:
        for parameter, master in zip(copies, masters, strict=True):
            master.grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(copies, masters, strict=True):
                parameter.copy_(master)

    assert worst_during(model, step, callback) <= LIMIT
    assert all(spectral_norm(master) <= LIMIT for master in masters if master.ndim >= 2)


def test_slices_of_a_weight_write_their_share_of_its_master():
    torch.manual_seed(0)
    model = nn.MultiheadAttention(16, 4).bfloat16()
    masters = masters_of(model)
    limits = {"*in_proj_weight*": 0.5, "*": None}
    with SNCallback(model, threshold=limits, masters=masters) as callback:
        callback.step()
    keep = masters["out_proj.weight"]
    for part in masters["in_proj_weight"].chunk(3):
        assert spectral_norm(part) <= 0.5
    assert torch.equal(model.in_proj_weight, masters["in_proj_weight"].bfloat16())
    assert torch.equal(model.out_proj.weight, keep.bfloat16())


def test_a_weight_that_is_computed_has_the_master_of_its_scale():
    model = low_model(nn.utils.parametrizations.weight_norm(nn.Linear(12, 24)))
    masters = masters_of(model)
    scale = "0.parametrizations.weight.original0"
    before = masters[scale].clone()
    with SNCallback(model, threshold=0.5, masters=masters) as callback:
        callback.step()
    assert spectral_norm(model[0].weight) <= 0.5
    assert (masters[scale] < before).all()
    assert torch.equal(model[0].parametrizations.weight.original0, masters[scale].bfloat16())


def test_layers_that_are_only_observed_and_their_masters_keep_every_bit():
    model = low_model()
    masters = {name: master + 1e-3 for name, master in masters_of(model).items()}
    keep = {name: p.detach().clone() for name, p in model.named_parameters()}
    with SNCallback(model, masters=masters) as callback:
        callback.step()
    assert all(torch.equal(p, keep[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("masters", "named"),
    [
        ({"2.wait": torch.zeros(6, 24)}, "2.wait"),
        ({torch.zeros(6, 24): torch.zeros(6, 24)}, "of another model"),
        ({"2.weight": torch.zeros(24, 6)}, "laid out like it"),
        ({"2.weight": torch.zeros(24, 6).t()}, "laid out like it"),
        ({"2.weight": torch.zeros(6, 24, dtype=torch.int32)}, "laid out like it"),
        ({"2.weight": [1.0]}, "laid out like it"),
    ],
)
def test_masters_that_fit_no_parameter_are_refused(masters, named):
    with pytest.raises(ValueError, match=named):
        SNCallback(low_model(), threshold=LIMIT, masters=masters)


def test_an_optimizer_that_steps_unknown_copies_is_named_once_per_weight(caplog):
    model = low_model()
    optimizer = torch.optim.SGD([nn.Parameter(m) for m in masters_of(model).values()], lr=1.0)
    with (
        SNCallback(model, threshold=0.5, optimizer=optimizer),
        caplog.at_level(logging.WARNING),
    ):
        for _ in range(3):
            optimizer.step()
            with torch.no_grad():
                model[0].weight.mul_(2)
                model[2].weight.mul_(2)
    said = [message for message in caplog.messages if "masters=" in message]
    assert len(said) == 2
    assert "0.weight" in said[0]


def test_a_state_of_another_shape_is_no_master(caplog):
    model = low_model(nn.Linear(6, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    decoy = torch.ones(2, 18)
    optimizer.state[model[0].weight]["master"] = decoy
    with caplog.at_level(logging.WARNING), SNCallback(model, threshold=0.1, optimizer=optimizer):
        optimizer.step()
    assert spectral_norm(model[0].weight) <= 0.1
    assert torch.equal(decoy, torch.ones(2, 18))
    assert "masters=" in caplog.text


def step_and_cast(model: nn.Module, masters: dict[str, Tensor]) -> None:
    backward(model)
    step_masters(model, masters)
    cast(model, masters)


def test_copies_of_masters_that_nobody_gave_are_warned_of_once(caplog):
    model = low_model()
    masters = masters_of(model)
    callback = SNCallback(model, threshold=LIMIT)
    with caplog.at_level(logging.WARNING):
        for _ in range(40):
            step_and_cast(model, masters)
            callback.step()
    callback.close()
    assert spectral_norm(masters["0.weight"]) > LIMIT
    (said,) = [x for x in caplog.messages if "comes back" in x]
    assert "0.weight" in said
    assert "masters=" in said


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_training_that_pushes_at_its_threshold_is_not_warned_of(dtype, caplog):
    model = low_model(dtype=dtype)
    callback = SNCallback(model, threshold=LIMIT)
    with caplog.at_level(logging.WARNING):
        for _ in range(40):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.08)
            callback.step()
    callback.close()
    assert callback.latest["0.weight"]["scale"] < 0.95
    assert "comes back" not in caplog.text


@pytest.mark.parametrize("attached", ["main_param", "_hp_mapping"])
def test_masters_attached_to_parameters_by_megatron_and_deepspeed_are_found(attached):
    model = low_model()
    masters = masters_of(model)
    for name, parameter in model.named_parameters():
        flat = masters[name].view(-1)
        mapping = SimpleNamespace(get_hp_fragment=lambda flat=flat: flat)
        setattr(parameter, attached, flat if attached == "main_param" else mapping)
    callback = SNCallback(model, threshold=LIMIT)
    for _ in range(5):
        step_and_cast(model, masters)
        callback.step()
        assert spectral_norm(masters["0.weight"]) <= LIMIT * (1 + 1e-3)
        assert torch.equal(model[0].weight, masters["0.weight"].bfloat16())
    callback.close()
