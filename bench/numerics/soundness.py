"""Are bounds bounds? Certificates over random matrices, carried bounds along a training."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from character_model import CharacterModel, minibatches, optimizer_of, warm_up
from spectra import norm, singular_values
from torch import Tensor

from snc_client import SNCallback
from snc_client.certificate import certify, sigma_upper


def random_matrix(generator: torch.Generator) -> Tensor:
    """Return a float32 matrix: Gaussian, low rank, planted, ternary or bfloat16, at any scale."""
    m, n, kind = torch.randint(1, 25, (3,), generator=generator).tolist()
    w = torch.randn(m, n, generator=generator)
    if kind % 5 == 1:
        w = torch.outer(w[:, 0], w[0]) + 1e-4 * (kind % 2) * w
    elif kind % 5 == 2:
        w = torch.linalg.qr(w if m >= n else w.mT).Q * (1 + 1e-3 * (kind % 2) * torch.rand(()))
    elif kind % 5 == 3:
        w = w.sign() * (w.abs() > 0.5)
    elif kind % 5 == 4:
        w = w.bfloat16().float()
    scale: Tensor = 10 ** (5 * torch.randn((), generator=generator))
    return w * scale


def soundness(count: int, seed: int) -> tuple[int, int, list[float]]:
    print(f"\n4. Certificates of {count} random matrices up to 24 x 24, scales 1e-15 to 1e15")
    generator = torch.Generator().manual_seed(seed)
    unsound = tried = refused = 0
    tightness = []
    for k in range(count):
        w = random_matrix(generator)
        true = float(singular_values(w)[0])
        below = 1 - 10.0 ** -(3 + k % 10)  # 1e-3 to 1e-12 below the truth
        sigma = true * (1 - 10.0 ** -(1 + k % 7)) if k % 11 else 0.0
        upper = float(sigma_upper(w, torch.tensor(sigma)))
        if true > 0:
            tried += 2
            unsound += bool(certify(w, true * below)) + (upper < true)
            refused += not certify(w, true * (1 + 1e-9))
            if 5e-4 * true > true - sigma:
                tightness.append(upper / true - 1)
    print(f"   unsound {unsound} of {tried}; bounds 1e-9 above the truth refused: {refused}")
    top, p99, middle = quantiles(tightness)
    print("   sigma_upper / true - 1, where sigma was right to 1e-4:", end=" ")
    print(f"max {top:.1e}, p99 {p99:.1e}, median {middle:.1e}")
    return unsound, tried, tightness


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """Return largest, 99th percentile and median."""
    t = torch.tensor(values, dtype=torch.float64)
    return float(t.max()), float(t.quantile(0.99)), float(t.median())


@dataclass
class Origins:
    """What each measurement's sigma_upper was worth, and how it compared with the truth."""

    seen: Counter[str] = field(default_factory=Counter)
    violations: int = 0  # of certified and carried ones
    over: dict[str, list[float]] = field(default_factory=dict)  # sigma_upper / true - 1, by origin


WAYS = {
    "strict": {"threshold": "1.2x init", "strict": True},
    "watched, update_norm": {"signals": ("update_norm",)},
    "watched": {},
}


def carried(name: str, way: str, steps: int, seed: int) -> Origins:
    """Train with the callback, and compare every sigma_upper with the weight it was said of."""
    torch.manual_seed(seed)
    model, origins = CharacterModel(), Origins()
    optimizer = optimizer_of(model, name)
    weights = {n: w for n, w in model.named_parameters() if w.ndim == 2}
    exact: dict[int, dict[str, float]] = {}
    # A hook of the optimizer is what update_norm needs; it would act before we could look.
    hooked = "signals" in WAYS[way]
    with SNCallback(model, optimizer=optimizer if hooked else None, **WAYS[way]) as callback:
        for step, batch in zip(range(steps), minibatches(seed), strict=False):
            warm_up(optimizer, step)
            loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            exact[step + 1] = {n: norm(w) for n, w in weights.items()}
            if not hooked:
                callback.step(loss=loss)
            _judge(origins, callback, exact)
    return origins


def _judge(origins: Origins, callback: SNCallback, exact: dict[int, dict[str, float]]) -> None:
    latest = callback.latest
    for layer, reading in latest.items():
        origin, upper = reading["sigma_upper_from"], reading["sigma_upper"]
        # Idle layers take turns: only what was measured at this very step is looked at.
        if latest.step < 1 or latest.steps[latest.names.index(layer)] != latest.step:
            continue
        origins.seen[str(origin)] += 1
        if upper is None or origin is None:
            continue
        over = upper / exact[latest.step][layer] - 1
        origins.over.setdefault(origin, []).append(over)
        origins.violations += origin != "aged" and over < 0


def origins(steps: int, seed: int) -> dict[tuple[str, str], Origins]:
    print(
        f"\n5. Where sigma_upper comes from, {steps} steps of the callback, every layer and step;"
    )
    print(
        "   over the truth: median / max of certified and of carried bounds, aged ones as they are"
    )
    found = {}
    for name, way in (
        ("AdamW", "strict"), ("Muon-like", "strict"), ("AdamW", "watched, update_norm"),
        ("AdamW", "watched"), ("Muon-like", "watched"),
    ):  # fmt: skip
        x = found[name, way] = carried(name, way, steps, seed)
        total = sum(x.seen.values())
        line = f"   {name:10s} {way:21s} below the truth {x.violations:2d}"
        for origin in ("certified", "carried", "aged"):
            over = x.over.get(origin, [])
            if over:
                top, _, middle = quantiles(over)
                line += f"  {origin} {x.seen[origin] / total:4.0%} {middle:.1e} / {top:.1e}"
        print(line)
    return found
