"""The guard over sharded trainings: one verdict on all ranks, and each restores its own part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.multiprocessing as mp
from sharded_cases import (
    fully_sharded,
    gathered,
    losses,
    on_two_dimensions,
    replicated,
    stage,
    tensor_parallel,
    whole,
)
from torch import Tensor, nn

from snc_client import GuardSettings, SNCallback
from snc_client.callback.guard import guard as guard_module
from snc_client.callback.guard import sharded_guard

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not hasattr(torch.distributed.fsdp, "fully_shard"), reason="needs torch >= 2.6"
    ),
]

ARMED = 10  # steps
LEAP, NOT_FINITE, OF_ONE, STORED, LATER = 13, 15, 17, 19, 24
VETOED = (LEAP, NOT_FINITE, OF_ONE, STORED, LATER)
LOST = 21  # a step at which the callback of a rank raises
STEPS = 26


def here(values: Any) -> Tensor:
    found = values.detach()
    return getattr(found, "_local_tensor", found)  # type: ignore[no-any-return]


def spoiled(model: nn.Module, step: int, *, rank: int) -> None:
    """Break a step: gradients on all ranks, or numbers that one rank alone has."""
    named = dict(model.named_parameters())
    if step in (LEAP, LATER):
        for p in model.parameters():
            here(p.grad).mul_(1e4)
    if step == NOT_FINITE:
        here(named["head.weight"].grad).fill_(torch.nan)
    if step == OF_ONE and rank == 1:  # of a parameter that is no layer
        here(named["blocks.0.norm.weight"].grad)[:1] = torch.inf
    if step == STORED and rank == 1:  # as a fault of memory, which no version counter shows
        here(named["blocks.1.up.weight"]).data[0, 0] = 30.0


def trained(
    make: Callable[[], nn.Module],
    *,
    rank: int,
    steps: int = STEPS,
    lost: bool = False,
    threshold: str | None = "1.02x init",
) -> dict[str, Any]:
    """Train with SGD, whose leaps are as large as their gradients, under the guard."""
    model = make()
    stepper = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    tallies, before, after, ours = [], [], [], []
    with SNCallback(model, optimizer=stepper, guard=True, threshold=threshold) as callback:
        for step in range(1, steps + 1):
            stepper.zero_grad()
            losses(model, step).backward()
            before.append(state(model, stepper))
            spoiled(model, step, rank=rank)
            if lost and rank == 1 and step == LOST:
                callback._follower.changed = raises  # type: ignore[method-assign]
            stepper.step()
            if lost and rank == 1 and step == LOST:
                del callback._follower.changed
            after.append(state(model, stepper))
            tallies.append(callback._guard._tally.tolist())  # type: ignore[union-attr]
            ours.append({k: reading.get("scale") for k, reading in callback.latest.items()})
        errors = callback.errors
    restored = [
        all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        for one, other in zip(before, after, strict=True)
    ]
    weights = {k: gathered(p) for k, p in model.named_parameters()}
    return {
        "tallies": tallies,
        "restored": [step for step, same in enumerate(restored, 1) if same],
        "weights": weights,
        "local": [here(p).clone() for p in model.parameters()],
        "scales": ours,
        "errors": errors,
        "guard": [reading.get("guard") for reading in callback.latest.values()],
    }


def raises() -> bool:
    raise RuntimeError("a fault of this rank")


def state(model: nn.Module, stepper: torch.optim.Optimizer) -> list[Tensor]:
    """Return copies of what lies here of the weights and of the optimizer's momentum."""
    momenta = [x["momentum_buffer"] for x in stepper.state.values()]
    return [here(x).clone() for x in [*model.parameters(), *momenta]]


def unread(make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Go the way of a device whose values the host may not look at."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (guard_module, sharded_guard):
            patch.setattr(module, "reading_is_free", lambda device: False)
        return make()


def long_broken(rank: int) -> dict[str, Any]:
    """Leap at every step from the tenth on, so that weights roll back."""
    model = fully_sharded()
    stepper = torch.optim.SGD(model.parameters(), lr=0.05)
    kept, rolled = None, []
    limits = GuardSettings(max_rejections=3, at_limit="roll back")
    with SNCallback(model, optimizer=stepper, guard=limits) as callback:
        for step in range(1, ARMED + 5):
            stepper.zero_grad()
            losses(model, step).backward()
            if step > ARMED:
                for p in model.parameters():
                    here(p.grad).mul_(1e5)
            stepper.step()
            if step == ARMED:
                kept = state(model, stepper)
            rolled.append(int(callback._guard._tally[2]))  # type: ignore[union-attr]
    same = all(torch.equal(a, b) for a, b in zip(kept or [], state(model, stepper), strict=True))
    return {"rolled": rolled, "same": same}


def refusals(rank: int) -> list[str]:
    said = []
    settings = GuardSettings(max_rejections=20 if rank else 3)
    for make, guard in (
        (tensor_parallel, True),
        (on_two_dimensions, True),
        (stage, True),
        (fully_sharded, settings),
    ):
        with pytest.raises(ValueError, match="guard must be False") as error:
            SNCallback(make(), guard=guard)
        said.append(str(error.value))
    return said


def work(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting{ranks}", rank=rank, world_size=ranks
    )
    torch.set_num_threads(1)
    if ranks == 2:
        found = {
            "read": trained(fully_sharded, rank=rank),
            "unread": unread(lambda: trained(fully_sharded, rank=rank)),
            "lost": trained(fully_sharded, rank=rank, lost=True),
            "free": trained(fully_sharded, rank=rank, threshold=None),
            "long": long_broken(rank),
        }
    else:
        found = {
            "replicated": trained(replicated, rank=rank, steps=OF_ONE + 1),
            "refused": refusals(rank),
        }
    torch.save(found, f"{folder}/{ranks}-{rank}.pt")
    dist.destroy_process_group()


def run(ranks: int, factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = factory.mktemp("ranks")
    mp.spawn(work, args=(ranks, str(folder)), nprocs=ranks)
    return [torch.load(folder / f"{ranks}-{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(2, tmp_path_factory)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(4, tmp_path_factory)


@pytest.mark.parametrize("way", ["read", "unread", "lost"])
def test_every_rank_undoes_the_same_steps_and_restores_its_own_part_bit_for_bit(two, way):
    assert two[0][way]["tallies"] == two[1][way]["tallies"]
    for rank in two:
        vetoes = [tally[0] for tally in rank[way]["tallies"]]
        assert vetoes == [sum(step >= at for at in VETOED) for step in range(1, STEPS + 1)]
        assert set(VETOED) - {STORED} <= set(rank[way]["restored"])
        assert rank[way]["errors"] == int(way == "lost" and rank is two[1])


def test_verdicts_are_those_of_the_whole_training_and_weights_as_near_as_sums_allow(two):
    alone = trained(whole, rank=1, threshold=None)
    assert two[0]["free"]["tallies"] == alone["tallies"]
    assert two[0]["free"]["restored"] == alone["restored"]
    for name, weight in alone["weights"].items():
        error = torch.linalg.vector_norm(two[0]["free"]["weights"][name] - weight)
        assert error <= 1e-5 * torch.linalg.vector_norm(weight), name


def test_weights_are_the_same_whether_the_host_reads_the_verdict_or_not(two):
    for rank in two:
        for one, other in zip(rank["read"]["local"], rank["unread"]["local"], strict=True):
            assert torch.equal(one, other)


def test_weights_roll_back_to_the_same_step_on_every_rank(two):
    for rank in two:
        assert rank["long"]["rolled"] == [0] * (ARMED + 2) + [1, 1]
        assert rank["long"]["same"]


def test_the_replicas_of_a_shard_are_restored_alike(four):
    found = [rank["replicated"] for rank in four]
    assert found[0]["tallies"][-1][0] == 3
    assert all(rank["tallies"] == found[0]["tallies"] for rank in found)
    for first, second in ((0, 2), (1, 3)):
        for one, other in zip(found[first]["local"], found[second]["local"], strict=True):
            assert torch.equal(one, other)


def test_models_whose_numbers_would_not_reach_all_ranks_are_refused(four):
    for rank in four:
        parallel, both, pipeline, unlike = rank["refused"]
        assert "'table.weight' is none" in parallel
        assert "is none" in both  # it lies on one dimension of the mesh
        assert "all ranks of the job" in pipeline
        assert "sharded" in unlike  # settings differ, so that no verdict would be the same
