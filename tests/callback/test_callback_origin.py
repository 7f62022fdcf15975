"""Every measurement has a sigma_upper that says what it is worth; where it is a bound, it holds.

The oracle is a float64 SVD of the weight as the callback found it, at every step.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from small_loops import grow, norms, small_model, train_step
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from snc_client import SNCallback
from snc_client.callback.readback.bound_provenance import BoundProvenance
from snc_client.layer_row import LayerRow
from snc_service.wire import ABSENT, absent

SIGNALS = ("update_norm",)
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD, momentum and decay": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, weight_decay=0.1
    ),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5),
    "AdamW, one by one": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=False),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
}


class Muon(torch.optim.Optimizer):
    """An orthogonalised step: no formula of ours knows its norm."""

    def __init__(self, parameters) -> None:
        super().__init__(parameters, {"lr": 0.02})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for p in self.param_groups[0]["params"]:
            if p.ndim == 2:
                u, _, vh = torch.linalg.svd(p.grad, full_matrices=False)
                p.sub_(u @ vh, alpha=self.param_groups[0]["lr"])


class Witness:
    """Compares each row that arrives with the exact norms that the callback found at its step."""

    def __init__(self, model: nn.Module, callback: SNCallback) -> None:
        self.model, self.callback = model, callback
        self.exact: dict[int, dict[str, float]] = {}
        self.seen: Counter[str] = Counter()
        self.origins: list[dict[str, str | None]] = []
        self._step = 0

    def before_action(self) -> None:
        self._step += 1
        self.exact[self._step] = norms(self.model)

    def check(self) -> None:
        latest = self.callback.latest
        if latest.step < 1:
            return
        self.origins.append({n: r["sigma_upper_from"] for n, r in latest.items()})
        for name, reading in latest.items():
            origin, upper = reading["sigma_upper_from"], reading["sigma_upper"]
            assert (origin is None) == (upper is None)
            self.seen[str(origin)] += 1
            if origin in ("certified", "carried"):
                assert self.exact[latest.step][name] <= upper


def watched(model, optimizer, steps, between=None, **keywords) -> Witness:
    with SNCallback(model, optimizer=optimizer, certify_every=12, **keywords) as callback:
        witness = Witness(model, callback)
        # The first post-step hook would make the callback conclude nothing: look from the gradient.
        original = callback._monitor.measure

        def measure(*args, **kwargs):
            witness.before_action()
            return original(*args, **kwargs)

        callback._monitor.measure = measure
        for step in range(steps):
            train_step(model, optimizer)
            witness.check()
            if between is not None:
                between(step)
    witness.check()
    assert callback.errors == 0
    return witness


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_between_certificates_a_bound_is_carried_by_the_steps_that_are_known(make):
    model = small_model()
    witness = watched(model, make(model.parameters()), 40, signals=SIGNALS)
    assert witness.seen["certified"] >= 6
    assert witness.seen["carried"] >= 40
    assert witness.seen["aged"] == 0


@pytest.mark.parametrize("make", [OPTIMIZERS["SGD, momentum and decay"], OPTIMIZERS["AdamW"]])
def test_a_carried_bound_holds_through_the_rescales_of_an_active_threshold(make):
    model = small_model()
    optimizer = make(model.parameters())
    witness = watched(model, optimizer, 40, threshold=0.5, signals=SIGNALS)
    assert witness.seen["carried"] >= 20
    assert witness.seen["aged"] == 0
    assert max(norms(model).values()) <= 0.5 * (1 + 1e-3)


def test_a_carried_bound_is_never_divided_by():
    """It grows with every step: dividing by it would be a weight decay that nobody asked for."""
    held, free = (small_model(), small_model())
    for model, threshold in ((held, "3x init"), (free, None)):
        torch.manual_seed(5)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        watched(model, optimizer, 60, threshold=threshold, signals=SIGNALS)
    for one, other in zip(held.parameters(), free.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "settings",
    [{"momentum": 0.9, "nesterov": True}, {"weight_decay": 11.0}],
    ids=["Nesterov", "a decay of half the weight"],
)
def test_a_step_whose_terms_may_cancel_carries_nothing(settings):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, **settings)
    witness = watched(model, optimizer, 20, signals=SIGNALS)
    assert witness.seen["carried"] == 0
    assert witness.seen["aged"] > 0


def test_an_optimizer_of_unknown_steps_leaves_the_last_certificate_with_its_age():
    model = small_model()
    witness = watched(model, Muon(model.parameters()), 40)
    assert set(witness.seen) == {"certified", "aged"}, (
        "the first look certifies, so none is without"
    )
    assert witness.seen["aged"] > 40


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_steps_of_low_precision_carry_nothing(dtype):
    model = small_model().to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with SNCallback(model, optimizer=optimizer, certify_every=4, signals=SIGNALS) as callback:
        for _ in range(20):
            loss = model(torch.randn(16, 12, dtype=dtype)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            origins = {r["sigma_upper_from"] for r in callback.latest.values()}
            assert origins <= {None, "certified", "aged"}
    assert callback.latest["0.weight"]["sigma_upper"] is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strict_has_a_bound_at_every_step_whoever_writes(dtype):
    model = small_model().to(dtype)
    with SNCallback(model, threshold=4.0, strict=True, certify_every=None) as callback:
        witness = Witness(model, callback)
        for step in range(20):
            grow(model, 1.1 if step % 2 else 0.8)
            witness.before_action()
            callback.step()
            witness.check()
    witness.check()
    assert witness.seen["aged"] == witness.seen["None"] == 0
    assert witness.seen["carried"] > 0


def scaled(model: nn.Module, _optimizer) -> None:
    grow(model, 3.0)


def loaded(model: nn.Module, _optimizer) -> None:
    model.load_state_dict({k: 3 * v for k, v in model.state_dict().items()})


def assigned(model: nn.Module, _optimizer) -> None:
    model.load_state_dict({k: 3 * v for k, v in model.state_dict().items()}, assign=True)


def stepped_twice(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A second optimizer steps the same weights."""
    other = torch.optim.SGD(model.parameters(), lr=5.0)
    other.step()


def moved(model: nn.Module, _optimizer) -> None:
    """Its numbers come from elsewhere; no write to the parameter itself is counted."""
    model[0].weight.data = 3 * model[0].weight.data


@pytest.mark.parametrize("write", [scaled, loaded, assigned, stepped_twice, moved])
def test_what_others_write_between_two_steps_ends_a_carried_bound(write):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def between(step: int) -> None:
        if step == 30:
            write(model, optimizer)

    witness = watched(model, optimizer, 34, between, signals=SIGNALS)
    assert witness.origins[29]["0.weight"] in ("carried", "certified")
    assert witness.origins[31]["0.weight"] in ("aged", "certified")


def test_a_write_that_leaves_no_trace_is_noticed_when_sigma_passes_the_bound():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def between(step: int) -> None:
        if step == 30:
            model[0].weight.data.mul_(3.0)

    witness = watched(model, optimizer, 34, between, signals=SIGNALS)
    assert witness.origins[31]["0.weight"] in ("aged", "certified")


@pytest.mark.parametrize("others", ["a hook", "a hook on every optimizer"])
def test_hooks_that_might_write_within_the_step_leave_nothing_to_carry(others):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    if others == "a hook":
        optimizer.register_step_post_hook(lambda *_: grow(model, 1.2))
    else:
        hook = register_optimizer_step_post_hook(lambda *_: grow(model, 1.2))
    try:
        witness = watched(model, optimizer, 20, signals=SIGNALS)
    finally:
        if others == "a hook on every optimizer":
            hook.remove()
    assert set(witness.seen) <= {"certified", "aged", "None"}


def test_a_callback_of_another_model_that_only_looks_on_leaves_bounds_to_carry():
    looks_on = SNCallback(small_model())  # without optimizer=: it has a hook on every optimizer
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    witness = watched(model, optimizer, 20, signals=SIGNALS)
    assert "carried" in witness.seen
    looks_on.close()


def test_a_cap_is_no_multiplication_so_its_layer_waits_for_the_next_certificate():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    limits = {"0.weight": 0.4, "2.weight": 10.0}
    witness = watched(model, optimizer, 30, threshold=limits, action="cap", signals=SIGNALS)
    assert {x["2.weight"] for x in witness.origins[14:]} == {"carried", "certified"}
    first = [x["0.weight"] for x in witness.origins[:14]]
    assert "aged" in first, "it was capped at the first step after its certificate"


def test_the_ages_are_those_of_the_certificate_and_of_the_last_bound():
    model = small_model()
    ages = []
    with SNCallback(model, certify_every=4) as callback:
        for _ in range(12):
            callback.step()
            reading = callback.latest["0.weight"]
            ages.append((reading["certified_age"], reading["bound_age"]))
    # The untouched weights, then each of two layers once in four measurements.
    assert ages[:7] == [(0, 0), (1, 1), (0, 0), (1, 1), (2, 2), (3, 3), (0, 0)]


def test_without_certificates_there_is_no_bound_to_speak_of():
    model = small_model()
    with SNCallback(model, certify_every=None) as callback:
        for _ in range(4):
            callback.step()
    assert {x["sigma_upper_from"] for x in callback.latest.values()} == {None}


def row(step: int, sigma: list[float], upper: list[float], certified: bool = False) -> LayerRow:
    values = np.array([sigma, upper], np.float32)
    mask = np.full(len(sigma), certified)
    return LayerRow(step, ("sigma", "sigma_upper"), values, {}, 0.0, certified=mask)


WORTH = ("sigma_upper", "certified_age", "bound_age")


@pytest.mark.parametrize(
    ("sigma", "upper", "expected"),
    [
        (1.0, ABSENT, (2.0, 5, 3)),  # aged
        (1.0, 2.5, (2.5, 5, 0)),  # carried
        (np.nan, ABSENT, None),  # of a weight that is not finite nothing old is said
        (ABSENT, ABSENT, None),  # not measured
        (1.0, np.inf, (2.0, 5, 3)),  # carried from nothing
    ],
)
def test_a_row_is_completed_by_what_is_known(sigma, upper, expected):
    provenance = BoundProvenance(1)
    provenance.completed(row(4, [1.0], [2.0], certified=True))
    provenance.completed(row(6, [1.0], [2.0]))
    completed = provenance.completed(row(9, [sigma], [upper]))
    found = np.array([completed.metric(name)[0] for name in WORTH], np.float32)
    if expected is None:
        assert absent(found).all()
    else:
        assert tuple(found.tolist()) == expected


def test_layers_that_come_later_know_nothing_and_the_others_keep_what_they_know():
    provenance = BoundProvenance(1)
    provenance.completed(row(4, [1.0], [2.0], certified=True))
    completed = provenance.wider(1).completed(row(6, [1.0, 1.0], [ABSENT, ABSENT]))
    assert completed.metric("sigma_upper")[0] == 2.0
    assert all(absent(completed.metric(name))[1] for name in WORTH)


def test_a_resumed_training_knows_no_bound_of_the_one_that_it_left():
    model = small_model()
    callback = SNCallback(model, certify_every=2)
    state = callback.state_dict()
    for _ in range(4):
        callback.step()
    assert callback.latest["0.weight"]["sigma_upper"] is not None
    callback.load_state_dict(state)
    callback.step()
    callback.close()
    assert callback.latest["2.weight"]["sigma_upper_from"] in (None, "certified")
