"""Attacks on the guarantee: surgery on a held model between two steps, and hostile certificates.

    OMP_NUM_THREADS=1 python bench/numerics/attacks.py [--certificates 20000] [--seed 0]

Each attack changes a model that has been held for some steps; after the next step every layer that
is there then is compared with its threshold by float64 SVD, for each action, strict and not. Then
certificates of random spectra, shapes, dtypes and scales are compared with the norm: `sigma_upper`
with a wrong sigma must not be below it, and `certify` must not pass below it. Ends with the counts.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import platform
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from snc_client import SNCallback, certify
from snc_client.certificate import sigma_upper

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from spectra import norm

LIMIT, SIZE = 1.0, 40
ACTIONS = ("rescale", "cap", "normalize")
Attack = Callable[[nn.Sequential], None]
ATTACKS: dict[str, Attack] = {}


def attack(function: Attack) -> Attack:
    ATTACKS[function.__name__.replace("_", " ")] = function
    return function


def linear(scale: float = 3.0, size: int = SIZE) -> nn.Linear:
    layer = nn.Linear(size, size, bias=False)
    nn.init.normal_(layer.weight, std=scale / size**0.5)
    return layer


def weights(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.ndim >= 2]


@attack
def module_replaced(model: nn.Sequential) -> None:
    model[0] = linear()


@attack
def module_replaced_by_another_width(model: nn.Sequential) -> None:
    model[0] = nn.Linear(SIZE, SIZE + 8, bias=False)
    nn.init.normal_(model[0].weight, std=2.0)


@attack
def module_appended(model: nn.Sequential) -> None:
    model.append(linear())


@attack
def module_inserted_in_front(model: nn.Sequential) -> None:
    model.insert(0, linear())


@attack
def module_removed_and_the_next_one_grown(model: nn.Sequential) -> None:
    del model[1]
    model[1].weight.mul_(5)


@attack
def modules_swapped(model: nn.Sequential) -> None:
    model[0], model[2] = model[2], model[0]
    model[0].weight.mul_(4)


@attack
def parameter_object_exchanged(model: nn.Sequential) -> None:
    model[0].weight = nn.Parameter(linear().weight.detach())


@attack
def data_exchanged(model: nn.Sequential) -> None:
    model[0].weight.data = linear().weight.data


@attack
def data_set_to_a_transposed_view(model: nn.Sequential) -> None:
    model[0].weight.data = linear().weight.data.t()


@attack
def storage_shared_with_another_layer(model: nn.Sequential) -> None:
    model[0].weight = model[2].weight
    model[2].weight.mul_(6)


@attack
def tied_weights_separated(model: nn.Sequential) -> None:
    model[0].weight = model[2].weight
    model[0].weight = nn.Parameter(5 * model[2].weight.detach().clone())


@attack
def state_loaded_in_place(model: nn.Sequential) -> None:
    model.load_state_dict({k: 7 * v for k, v in model.state_dict().items()})


@attack
def state_assigned(model: nn.Sequential) -> None:
    model.load_state_dict({k: 7 * v for k, v in model.state_dict().items()}, assign=True)


@attack
def converted_to_float64_and_grown(model: nn.Sequential) -> None:
    model.double()
    model[0].weight.mul_(9)


@attack
def converted_to_bfloat16_and_grown(model: nn.Sequential) -> None:
    model.bfloat16()
    model[0].weight.mul_(9)


@attack
def converted_to_float16_and_grown(model: nn.Sequential) -> None:
    model.half()
    model[1].weight.mul_(9)


@attack
def rank_one_of_six_sigma(model: nn.Sequential) -> None:
    u, _, vh = torch.linalg.svd(model[0].weight)
    model[0].weight.add_(6 * torch.outer(u[:, -1], vh[-1]))


@attack
def the_weakest_half_swells(model: nn.Sequential) -> None:
    u, s, vh = torch.linalg.svd(model[0].weight)
    s[SIZE // 2 :] = 1.6
    model[0].weight.copy_((u * s) @ vh)


@attack
def all_singular_values_at_the_threshold_then_above(model: nn.Sequential) -> None:
    u, _, vh = torch.linalg.svd(model[0].weight)
    model[0].weight.copy_(1.002 * u @ vh)


@attack
def three_thousand_thresholds(model: nn.Sequential) -> None:
    model[0].weight.mul_(3000)


@attack
def one_entry_of_1e20(model: nn.Sequential) -> None:
    model[0].weight[3, 5] = 1e20


@attack
def constant_entries(model: nn.Sequential) -> None:
    model[0].weight.fill_(0.7)


@attack
def rows_set_to_zero_and_the_rest_grown(model: nn.Sequential) -> None:
    model[0].weight[: SIZE // 2] = 0
    model[0].weight.mul_(8)


@attack
def zeroed_then_one_entry(model: nn.Sequential) -> None:
    model[0].weight.zero_()
    model[0].weight[0, 0] = 3.0


@attack
def subnormal_beside_large(model: nn.Sequential) -> None:
    model[0].weight.fill_(1e-42)
    model[0].weight[1, 1] = 2.0


@attack
def permuted_and_negated(model: nn.Sequential) -> None:
    model[0].weight.copy_(-2.5 * model[0].weight[torch.randperm(SIZE)])


@attack
def pruned_by_a_mask(model: nn.Sequential) -> None:
    mask = torch.rand_like(model[0].weight) > 0.5
    model[0].weight.mul_(mask).mul_(6)


@attack
def deep_copy_put_back(model: nn.Sequential) -> None:
    other = copy.deepcopy(model[0])
    other.weight.mul_(4)
    model[0] = other


@attack
def frozen_and_thawed(model: nn.Sequential) -> None:
    model[0].weight.requires_grad_(False)
    model[0].weight.mul_(4)
    model[0].weight.requires_grad_(True)


@attack
def moved_into_one_flat_buffer(model: nn.Sequential) -> None:
    flat = torch.cat([p.detach().flatten() for p in model.parameters()]).mul_(3)
    start = 0
    for p in model.parameters():
        p.data = flat[start : start + p.numel()].view_as(p)
        start += p.numel()


@attack
def nearly_equal_pairs(model: nn.Sequential) -> None:
    u, s, vh = torch.linalg.svd(model[0].weight)
    s = 1.5 - 1e-6 * torch.arange(SIZE)
    model[0].weight.copy_((u * s) @ vh)


@attack
def a_stranger_writes_through_data(model: nn.Sequential) -> None:
    model[0].weight.data.mul_(5)


def held(name: str, action: str, strict: bool, seed: int) -> float:
    """Return the largest norm over threshold after the step that follows the attack."""
    torch.manual_seed(seed)
    model = nn.Sequential(*(linear(0.9) for _ in range(4)))
    policy = {"entries": [{"pattern": "*", "threshold": LIMIT, "action": action}]}
    with torch.no_grad(), SNCallback(model, policy=policy, strict=strict) as callback:
        for _ in range(7 + seed % 9):
            for p in weights(model):
                p.add_(torch.randn_like(p), alpha=2e-3)
            callback.step()
        ATTACKS[name](model)
        callback.step()
        assert callback.errors == 0, name
        return max(norm(p.detach().double()) for p in weights(model)) / LIMIT


def surgery(seed: int) -> int:
    lost = count = 0
    for name in ATTACKS:
        worst = 0.0
        for action in ACTIONS:
            for strict in (False, True):
                ratio = held(name, action, strict, seed)
                count, worst = count + 1, max(worst, ratio)
                if not ratio <= 1 + 1e-3:
                    lost += 1
                    print(f"  NOT HELD: {name}, {action}, strict={strict}: {ratio:.6f}", flush=True)
        print(f"  {name:50} largest norm / threshold {worst:.7f}", flush=True)
    print(f"{len(ATTACKS)} kinds of surgery, {count} trials: {lost} not held after one step")
    return lost


def spectrum(kind: int, n: int, chance: random.Random) -> Tensor:
    place = torch.arange(1, n + 1, dtype=torch.float64)
    kinds = [
        lambda: torch.rand(n, dtype=torch.float64),
        lambda: place ** -chance.uniform(0.1, 3),
        lambda: torch.ones(n, dtype=torch.float64),
        lambda: 1 - place * 10.0 ** -chance.randrange(2, 16),
        lambda: torch.where(place > chance.randrange(1, n + 1), 0.0, 1.0),
        lambda: torch.exp(-place * chance.uniform(0.1, 20)),
        lambda: torch.where(place > 1, 10.0 ** -chance.randrange(1, 12), 1.0),
        lambda: 2.0 ** torch.randint(-60, 1, (n,)).double(),
    ]
    return kinds[kind % len(kinds)]().clamp(min=0)


def matrix(chance: random.Random) -> Tensor:
    m, n = chance.randrange(1, 40), chance.randrange(1, 40)
    kind = chance.randrange(11)
    if kind >= 8:
        w = [torch.ones(m, n), torch.randint(-1, 2, (m, n)), torch.rand(m, n) ** 8][
            kind - 8
        ].double()
        w = w * torch.where(torch.rand(m, n) < 0.3, 0.0, 1.0) if chance.random() < 0.3 else w
    else:
        k = min(m, n)
        u = torch.linalg.qr(torch.randn(m, k, dtype=torch.float64)).Q
        v = torch.linalg.qr(torch.randn(n, k, dtype=torch.float64)).Q
        w = (u * spectrum(kind, k, chance)) @ v.mT
    return w


SCALES = {
    torch.float32: (-40, 36), torch.float64: (-300, 290), torch.bfloat16: (-38, 36),
    torch.float16: (-6, 3),
}  # fmt: skip


def certificates(count: int, seed: int) -> int:
    chance, unsound = random.Random(seed), 0
    torch.manual_seed(seed)
    for _ in range(count):
        dtype = chance.choice(list(SCALES))
        w = (matrix(chance) * 10.0 ** chance.randint(*SCALES[dtype])).to(dtype)
        if not w.isfinite().all():
            continue
        peak = float(w.double().abs().amax())
        unit = math.frexp(peak)[1] if peak else 0
        wide = torch.ldexp(w.double(), torch.tensor(-min(max(unit, -1000), 1000)))
        true = norm(wide)  # of the scaled matrix: its square stays in range
        below = math.ldexp(true * (1 - 1e-13), min(max(unit, -1000), 1000))
        wrong = chance.choice([1.0, 1 - 1e-3, 0.5, 0.0, 1e-6, 3.0, math.nan, math.inf])
        sigma = torch.tensor(math.ldexp(true, min(max(unit, -1000), 1000)), dtype=torch.float64)
        upper = float(sigma_upper(w, (sigma * wrong).float()))
        off = chance.choice([1e-3, 1e-5, 1e-8, 1e-10, 1e-12])
        if upper < below or (true > 0 and bool(certify(w, below * (1 - off)))):
            unsound += 1
            print(
                f"  UNSOUND: {dtype}, {tuple(w.shape)}, norm {float(sigma):.9e}, bound {upper:.9e}"
            )
    print(f"{count} matrices, two certificates each: {unsound} unsound")
    return unsound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--certificates", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    logging.getLogger("snc").setLevel(logging.ERROR)
    print(f"python bench/numerics/attacks.py {' '.join(sys.argv[1:])}".rstrip())
    print(
        f"{platform.machine()}, {torch.get_num_threads()} thread, torch {torch.__version__}, ",
        end="",
    )
    print(f"Python {platform.python_version()}; the machine was shared with other work", flush=True)
    start = time.process_time()
    failed = surgery(given.seed) + certificates(given.certificates // 2, given.seed)
    print("with subnormal numbers flushed to zero:")
    if torch.set_flush_denormal(True):
        failed += certificates(given.certificates // 8, given.seed + 1)
        torch.set_flush_denormal(False)
    print(f"{time.process_time() - start:.0f} s of CPU time")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
