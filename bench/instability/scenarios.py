"""The scenarios: real trainings that go well, and the same kinds of training with one fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from faults import Fault
from torch import nn

STARTS = (160, 197)  # first row of an injected fault, by seed
EARLY = (80, 98)  # of one that takes its time


@dataclass(frozen=True)
class Scenario:
    """One training. ``fault`` gives the injected fault for a seed; a ``base`` run has none at all.

    ``is_faulty`` without ``fault``: the fault lies in the configuration, and its cause is row 0.
    """

    task: str
    name: str
    lr: float
    optimizer: str = "adamw"
    options: Mapping[str, Any] = field(default_factory=dict)  # of the model
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    schedule: str = "constant"  # or "cosine", "restart", "ramp"
    warm_up: int = 0
    clip: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)  # factor by part of the name
    fault: Callable[[int], Fault] | None = None
    is_faulty: bool = False
    rows: int = 400

    @property
    def starts_late(self) -> bool:
        return self.fault is not None

    def twin(self) -> Scenario:
        """Return the same training without its injected fault."""
        return replace(self, fault=None, is_faulty=False)


def late(kind: str, rows: int = 10**9, size: float = 1.0) -> Callable[[int], Fault]:
    return lambda seed: Fault(kind, STARTS[seed % 2], rows, size)


def early(kind: str, rows: int = 10**9, size: float = 1.0) -> Callable[[int], Fault]:
    return lambda seed: Fault(kind, EARLY[seed % 2], rows, size)


TF = {"task": "tf", "lr": 2e-3, "warm_up": 30}
MLP = {"task": "mlp", "lr": 2e-3}
SGD = {"task": "mlp", "lr": 0.05, "optimizer": "sgd"}
CNN = {"task": "cnn", "lr": 2e-3}
BARE = {**CNN, "options": {"norm": False}}

HEALTHY = (
    Scenario("tf", "base", 3e-3, schedule="cosine", warm_up=40, clip=1.0),
    Scenario("mlp", "base", 2e-3),
    Scenario("cnn", "base", 2e-3),
    Scenario("td", "base", 1e-3),
    Scenario("tf", "zero_init", 2e-3, options={"zero": True}, warm_up=30, clip=1.0),
    Scenario("tf", "restart", 3e-3, schedule="restart", warm_up=20, clip=1.0),
    Scenario("mlp", "memorise", 3e-3, options={"fixed": True}, weight_decay=0.0),
    Scenario("mlp", "zero_head", 2e-3, options={"zero_head": True}),
    Scenario("mlp", "sgd", 0.05, optimizer="sgd", weight_decay=1e-3, schedule="cosine"),
    Scenario("mlp", "cleared", 2e-3, fault=late("clear_state", rows=1)),
    Scenario("cnn", "sgd", 0.05, optimizer="sgd", weight_decay=1e-3, schedule="cosine", warm_up=40),
    Scenario("cnn", "small_batch", 5e-4, options={"batch": 8}),
)
FAULTY = tuple(
    replace(scenario, is_faulty=True)
    for scenario in (
        Scenario(**TF, name="lr_spike", fault=late("lr_spike", 25, 60)),
        Scenario(**TF, name="nan_gradient", fault=late("nan_gradient", 1)),
        Scenario(**TF, name="decay_sign", fault=early("decay_sign", size=6.0)),
        Scenario(**TF, name="label_burst", fault=late("label_burst", 60)),
        Scenario("tf", "qk_rate", 2e-3, warm_up=30, weight_decay=0.0,
                 rates={".query.": 60.0, ".key.": 60.0}),
        Scenario("tf", "no_warm_up", 0.02, options={"depth": 4, "norm": "post"}),
        Scenario("tf", "no_norm", 0.03, options={"depth": 3, "norm": "none"}),
        Scenario("tf", "no_attention_scale", 0.02, warm_up=30, weight_decay=0.0,
                 options={"scale": False}),
        Scenario("tf", "high_rate", 0.1),
        Scenario("tf", "rate_ramp", 1e-4, schedule="ramp"),
        Scenario("tf", "no_zero_grad", 0.1, optimizer="sgd", warm_up=30,
                 fault=late("no_zero_grad")),
        Scenario(**SGD, name="lr_spike", fault=late("lr_spike", 40, 40)),
        Scenario(**SGD, name="bad_batch", fault=late("bad_batch", 3, 60)),
        Scenario(**SGD, name="no_zero_grad", fault=late("no_zero_grad")),
        Scenario(**MLP, name="decay_sign", fault=early("decay_sign", size=5.0)),
        Scenario(**MLP, name="bit_flip", fault=late("bit_flip", 1, 2000.0)),
        Scenario(**MLP, name="dead_relu", fault=late("dead_relu", 1, 6.0)),
        Scenario("mlp", "half_overflow", 0.02, weight_decay=0.0, options={"half": True, "depth": 6},
                 fault=early("decay_sign", size=0.5)),
        Scenario("mlp", "momentum", 0.1, optimizer="sgd", momentum=0.99),
        Scenario("mlp", "high_rate", 1.2, optimizer="sgd", options={"depth": 5}),
        Scenario("mlp", "rate_ramp", 5e-3, optimizer="sgd", schedule="ramp"),
        Scenario("mlp", "label_burst", 5e-3, fault=late("label_burst", 80)),
        Scenario("mlp", "deep", 0.01, options={"depth": 16, "gain": 1.5}, rows=300),
        Scenario("mlp", "sigmoids", 2e-3, options={"depth": 10, "activation": nn.Sigmoid},
                 rows=300),
        Scenario(**BARE, name="lr_spike", fault=late("lr_spike", 25, 80)),
        Scenario(**CNN, name="nan_gradient", fault=late("nan_gradient", 1)),
        Scenario(**BARE, name="decay_sign", fault=early("decay_sign", size=5.0)),
        Scenario("cnn", "bad_batch", 4e-3, betas=(0.9, 0.9), options={"norm": False},
                 fault=late("bad_batch", 5, 100)),
        Scenario("cnn", "gradient_scale", 0.03, optimizer="sgd", options={"norm": False},
                 fault=late("gradient_scale", size=30.0)),
        Scenario("td", "bad_batch", 2e-3, fault=late("bad_batch", 5, 300)),
        Scenario("td", "off_policy", 2e-3, options={"discount": 0.99, "target_every": 5},
                 fault=late("off_policy", size=1.6)),
        Scenario("td", "no_target", 3e-3,
                 options={"discount": 1.02, "target_every": 1, "carry": 1.0}),
    )
)  # fmt: skip
