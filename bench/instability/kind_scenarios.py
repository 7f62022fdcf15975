"""Healthy changes and faults of the kinds of training that `scenarios` does not list one by one.

Each kind has a base run, some of the changes that a healthy job makes, and a third of the faults
in turn, so that every fault meets four kinds or more and every kind seven faults or more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from faults import Fault
from scenarios import FAULTY, HEALTHY, Scenario, early, late

ROWS = 300

# Optimizer and rate of each kind; three kinds step with SGD.
KINDS: dict[str, dict[str, Any]] = {
    "modern": {"lr": 3e-3, "warm_up": 30, "clip": 1.0},
    "moe": {"lr": 3e-3, "warm_up": 30, "clip": 1.0},
    "rnn": {"lr": 4e-3, "clip": 1.0},
    "lora": {"lr": 5e-3},
    "tune": {"lr": 2e-3, "warm_up": 20},
    "res": {"lr": 0.02, "optimizer": "sgd", "weight_decay": 1e-3},
    "diff": {"lr": 2e-3, "schedule": "cosine"},
    "pairs": {"lr": 2e-3, "warm_up": 20},
    "vae": {"lr": 2e-3},
    "ae": {"lr": 2e-3},
    "teacher": {"lr": 0.05, "optimizer": "sgd", "weight_decay": 1e-3},
    "gan": {"lr": 1e-3, "betas": (0.5, 0.9)},
    "table": {"lr": 0.02, "optimizer": "sgd", "weight_decay": 1e-4},
    "ac": {"lr": 2e-3},
}

Change = Callable[[Scenario], Scenario]


def struck(name: str, fault: Callable[[int], Fault]) -> Change:
    return lambda base: replace(base, name=name, fault=fault)


def with_options(name: str, **options: Any) -> Change:
    return lambda base: replace(base, name=name, options={**base.options, **options})


def at_rate(name: str, factor: float, **more: Any) -> Change:
    return lambda base: replace(base, name=name, lr=factor * base.lr, **more)


HEALTHY_CHANGES: tuple[Change, ...] = (
    at_rate("half_rate", 0.5),
    at_rate("restart", 1.0, schedule="restart"),
    struck("cleared", late("clear_state", rows=1)),
    struck("freeze", late("freeze")),
    struck("skip", early("skip", size=40)),
    struck("decay_switch", late("decay_switch", size=0.05)),
    at_rate("other_optimizer", 1.0, betas=(0.9, 0.95), weight_decay=0.1),
)
BATCHED = ("modern", "rnn", "res", "diff", "vae", "ae", "teacher")  # take `change`

FAULTS: tuple[Change, ...] = (
    struck("lr_spike", late("lr_spike", 20, 40)),
    struck("gains", early("gains", size=0.015)),
    struck("corrupt", late("corrupt", size=0.6)),
    struck("shrink", early("shrink", size=0.02)),
    struck("doubling", early("doubling", size=12)),
    struck("input_ramp", early("input_ramp", size=1.025)),
    struck("silent", early("silent", size=2)),
    struck("rate_growth", early("rate_growth", size=1.04)),
    struck("temperature", early("temperature", size=1.03)),
    struck("dark", early("dark", size=100)),
    struck("wrong_targets", late("wrong_targets", size=0.5)),
    struck("decay_sign", early("decay_sign", size=6.0)),
    struck("stale", early("stale", size=12)),
    struck("bad_batch", late("bad_batch", 4, 60)),
    struck("ascent", late("ascent", 60)),
    struck("label_burst", late("label_burst", 50)),
    struck("bit_flip", late("bit_flip", 1, 300.0)),
    struck("noise", late("noise", size=30.0)),
    struck("nan_gradient", late("nan_gradient", 1)),
    struck("frozen", early("frozen")),
    at_rate("high_rate", 25.0, clip=None),
    at_rate("ramp", 0.2, schedule="ramp", clip=None),
)
OPTIMIZES_BY_DECAY = "adamw"


def kind_scenarios() -> tuple[tuple[Scenario, ...], tuple[Scenario, ...]]:
    """Return the healthy and the faulty scenarios."""
    healthy, faulty = [], []
    for number, (kind, settings) in enumerate(KINDS.items()):
        base = Scenario(kind, "base", rows=ROWS, **settings)
        healthy.append(base)
        healthy += [
            HEALTHY_CHANGES[(2 * number + i) % len(HEALTHY_CHANGES)](base) for i in range(3)
        ]
        if kind in BATCHED:
            healthy.append(with_options("larger_batch", change=180)(base))
        if kind == "moe":
            healthy.append(with_options("idle_expert", idle=True)(base))
        if kind == "table":
            healthy.append(with_options("dropout", change=180, dropout=0.2)(base))
        for place, change in enumerate(FAULTS):
            scenario = change(base)
            by_decay = scenario.name == "decay_sign" and scenario.optimizer != OPTIMIZES_BY_DECAY
            if (place + number) % 3 == 0 and not by_decay:
                faulty.append(replace(scenario, is_faulty=True))
    return tuple(healthy), tuple(faulty)


def every_scenario() -> tuple[Scenario, ...]:
    """Return all scenarios, healthy ones first; the base run of each kind comes before others."""
    healthy, faulty = kind_scenarios()
    return (*HEALTHY, *healthy, *FAULTY, *faulty)


SCENARIOS = every_scenario()
