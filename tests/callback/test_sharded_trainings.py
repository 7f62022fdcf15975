"""Sharded trainings in 2 and 4 processes: measured and held as the same training in one process.

What is exact comes from a float64 SVD of the gathered weight at every step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.multiprocessing as mp
from sharded_cases import (
    Sentences,
    fully_sharded,
    gradient_norm,
    on_two_dimensions,
    replicated,
    tensor_parallel,
    trained,
    whole,
)
from torch import nn

from snc_client import SNCallback

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not hasattr(torch.distributed.fsdp, "fully_shard"), reason="needs torch >= 2.6"
    ),
]

HELD = {"threshold": "1.01x init", "idle_every": 1}
SGD = {"optimizer": torch.optim.SGD, "lr": 0.1, "threshold": "1.001x init", "idle_every": 1}
STEPS = 12
OF_TWO = ("fully sharded", "strict", "tensor parallel", "slow", "updates")
OF_FOUR = ("on two dimensions", "replicated", "fully sharded by four")


def work(rank: int, ranks: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting{ranks}", rank=rank, world_size=ranks
    )
    torch.set_num_threads(1)
    torch.save(of_two() if ranks == 2 else of_four(), f"{folder}/{ranks}-{rank}.pt")
    dist.destroy_process_group()


def of_two() -> dict[str, Any]:
    return {
        "fully sharded": trained(fully_sharded, STEPS, finish=shards, **HELD),
        "strict": trained(fully_sharded, STEPS, lr=3e-3, strict=True, certify_every=3, **HELD),
        "tensor parallel": trained(tensor_parallel, STEPS, **HELD),
        "slow": trained(fully_sharded, STEPS, finish=states, **SGD),
        "updates": trained(
            fully_sharded,
            6,
            signals=("update_norm", "frobenius", "grad_norm"),
            **{**HELD, "threshold": "1.001x init"},  # reached within six steps
        ),
        "partial": {
            "partial sums": partial("sum"),
            "partial means": partial("avg"),
            "sums of one step": partial("sum", steps=[1]),
            "too large": partial("sum", wide=True),
        },
        "one group": {
            "fully sharded": sums(fully_sharded),
            "tensor parallel": sums(tensor_parallel),
            "without certificates": sums(fully_sharded, certify_every=None),
        },
    }


def of_four() -> dict[str, Any]:
    return {
        "on two dimensions": trained(on_two_dimensions, STEPS, strict=True, **HELD),
        "replicated": trained(replicated, STEPS, finish=shards, **HELD),
        "fully sharded by four": trained(fully_sharded, STEPS, **HELD),
        "two groups": {"on two dimensions": sums(on_two_dimensions)},
    }


def partial(
    operation: str, *, steps: Sequence[int] = range(3), wide: bool = False
) -> dict[str, Any]:
    """Train a shard beside a gain that all ranks hold, whose gradient is a sum over them."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7, bias=False), nn.LayerNorm(70_000 if wide else 7))
    weight, gain = model[0].weight, model[1].weight
    model[0].weight = nn.Parameter(distribute_tensor(weight.detach(), mesh, [Shard(0)]))
    model[1].weight = nn.Parameter(distribute_tensor(gain.detach(), mesh, [Replicate()]))
    said = Sentences()
    logging.getLogger("snc").addHandler(said)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    totals, exact, counts = [], [], []
    with SNCallback(model, signals=("grad_norm",)) as callback:
        for step in range(3):
            torch.manual_seed(step)
            first, *each = torch.randn(7, 5), torch.randn(gain.shape), torch.randn(gain.shape)
            kind = Partial(operation) if step in steps else Replicate()
            local = each[rank] if step in steps else each[0]
            model[0].weight.grad = distribute_tensor(first, mesh, [Shard(0)])
            model[1].weight.grad = DTensor.from_local(local, mesh, [kind], run_check=False)
            model[1].bias.grad = torch.ones_like(gain)
            exact.append(gradient_norm(model))
            optimizer.step()
            with CommDebugMode() as mode:
                callback.step()
            counts.append(mode.get_total_counts())
            totals.append(callback.latest.scalars.get("grad_norm"))
    totals = [*totals[1:], callback.latest.scalars.get("grad_norm")]
    logging.getLogger("snc").removeHandler(said)
    return {"totals": totals, "exact": exact, "counts": counts, "said": said.said}


def shards(model: nn.Module, callback: SNCallback) -> dict[str, Any]:
    return {"shards": {k: p.to_local().detach().clone() for k, p in model.named_parameters()}}


def states(model: nn.Module, callback: SNCallback) -> dict[str, Any]:
    weights = {k: p.full_tensor().detach() for k, p in model.named_parameters()}
    return {"state": callback.state_dict(), "weights": weights}


def sums(make: Callable[[], nn.Module], **keywords: Any) -> dict[str, Any]:
    """Return collectives, groups and bytes of a callback at each of three steps."""
    from torch.distributed.tensor.debug import CommDebugMode

    counts, sent, all_reduce = list[int](), list[int](), dist.all_reduce
    groups: list[list[list[int]]] = []
    keywords = keywords or {"certify_every": 2, "strict": True}

    def weighed(x: torch.Tensor, *, group: Any, **more: Any) -> Any:
        sent[-1] += x.numel() * x.element_size()
        groups[-1].append(dist.get_process_group_ranks(group))
        return all_reduce(x, group=group, **more)

    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with SNCallback(model, threshold="1.01x init", **keywords) as callback:
        dist.all_reduce = weighed
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
            sent.append(0)
            groups.append([])
            with CommDebugMode() as mode:
                callback.step()
            counts.append(mode.get_total_counts())
        dist.all_reduce = all_reduce
        sides = [x.shard().small for x in callback.layers.layers if x.sharded]
    return {"counts": counts, "bytes": sent, "groups": groups, "sides": sides}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(2, tmp_path_factory)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(4, tmp_path_factory)


def run(ranks: int, factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = factory.mktemp("ranks")
    mp.spawn(work, args=(ranks, str(folder)), nprocs=ranks)
    return [torch.load(folder / f"{ranks}-{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    fixture = "two" if request.param in OF_TWO else "four"
    found: dict[str, Any] = request.getfixturevalue(fixture)[0][request.param]
    return found


each = pytest.mark.parametrize("case", [*OF_TWO, *OF_FOUR], indirect=True)


@each
def test_sigma_is_that_of_the_gathered_weight_at_every_step(case):
    assert case["errors"] == 0
    for step, exact in enumerate(case["before"]):
        for name, norm in exact.items():
            sigma = case["readings"][step][name]["sigma"]
            assert norm * (1 - 1e-3) <= sigma <= norm * (1 + 2e-6), (step + 1, name)


@each
def test_every_layer_is_held_after_every_step(case):
    scales = [reading["scale"] for step in case["readings"] for reading in step.values()]
    assert min(scales) < 1
    for step, exact in enumerate(case["after"]):
        for name, norm in exact.items():
            threshold = case["readings"][step][name]["threshold"]
            assert norm <= threshold * 1.001, (step + 1, name)


@pytest.mark.parametrize("case", ["strict", "on two dimensions"], indirect=True)
def test_strict_has_a_bound_at_every_step_and_holds_without_a_margin(case):
    for step, exact in enumerate(case["before"]):
        for name, norm in exact.items():
            reading = case["readings"][step][name]
            assert norm <= reading["sigma_upper"] * (1 + 1e-12), (step + 1, name)
            assert case["after"][step][name] <= reading["threshold"] * (1 + 2e-7), (step + 1, name)


@each
def test_the_layers_are_those_of_the_whole_model(case):
    alone = SNCallback(whole())
    expected = [(x.name, x.shape, x.fan_out, x.fan_in) for x in alone.layers.layers]
    assert case["layers"] == expected
    assert not any("sharded" in reason for reason in case["skipped"].values())
    alone.close()


@each
def test_the_frobenius_norm_and_the_reference_are_those_of_the_whole_matrix(case):
    alone = trained(whole, 1, **HELD)
    for name, reading in alone["start"].items():
        ours = case["start"][name]
        assert ours["frobenius"] == pytest.approx(reading["frobenius"], rel=1e-5)
        assert ours["sigma"] == pytest.approx(reading["sigma"], rel=1e-5)


@each
def test_the_norm_of_all_gradients_is_that_of_the_gathered_ones(case):
    assert case["totals"] == pytest.approx(case["gradients"], rel=1e-6)


@pytest.mark.parametrize("way", ["partial sums", "partial means", "sums of one step"])
def test_a_gradient_that_is_a_partial_sum_is_reduced_in_the_same_collective(two, way):
    for rank in two:
        found = rank["partial"][way]
        assert found["totals"] == pytest.approx(found["exact"], rel=1e-6)
        assert found["counts"] == [1] * 3


def test_a_partial_sum_of_a_large_gradient_is_said_and_not_measured(two):
    for rank in two:
        found = rank["partial"]["too large"]
        assert found["totals"] == [None] * 3
        (said,) = (x for x in found["said"] if "gradients together" in x)
        assert "Partial" in said


def test_all_ranks_find_the_same_numbers_to_the_last_bit(two, four):
    for ranks in (two, four):
        for name in ranks[0].keys() & {*OF_TWO, *OF_FOUR}:
            for other in ranks[1:]:
                assert other[name]["readings"] == ranks[0][name]["readings"]


def test_the_replicas_of_a_shard_stay_equal_to_the_last_bit(four):
    by_rank = [rank["replicated"]["shards"] for rank in four]
    for first, second in ((0, 2), (1, 3)):
        for name, shard in by_rank[first].items():
            assert torch.equal(shard, by_rank[second][name]), name
    assert any(shard.numel() == 0 for shard in by_rank[3].values())


def test_thresholds_and_factors_are_those_of_the_training_in_one_process(two):
    alone = trained(whole, STEPS, **SGD)
    assert min(x["scale"] for step in alone["readings"] for x in step.values()) < 1
    for ours, theirs in zip(two[0]["slow"]["readings"], alone["readings"], strict=True):
        for name, reading in theirs.items():
            assert ours[name]["threshold"] == pytest.approx(reading["threshold"], rel=1e-6)
            assert ours[name]["scale"] == pytest.approx(reading["scale"], abs=1e-6)
            assert ours[name]["grad_norm"] == pytest.approx(reading["grad_norm"], rel=1e-4)


def test_the_norm_of_an_update_is_that_of_the_whole_one(two):
    alone = trained(whole, 1, signals=("update_norm", "grad_norm"), **HELD)
    for name, reading in alone["readings"][0].items():
        ours = two[0]["updates"]["readings"][0][name]
        assert ours["grad_norm"] == pytest.approx(reading["grad_norm"], rel=1e-4)
        assert ours["update_norm"] == pytest.approx(reading["update_norm"], rel=1e-3)


def test_one_collective_is_made_at_each_step_and_group(two, four):
    for rank in two:
        for way in ("fully sharded", "tensor parallel"):
            assert rank["one group"][way]["counts"] == [1] * 3, way
    for rank in four:
        found = rank["two groups"]["on two dimensions"]
        # Of the shards along each dimension, and of the rows that both have cut.
        assert found["counts"] == [3] * 3
        assert all(len({tuple(group) for group in step}) == 3 for step in found["groups"])


def test_a_step_sums_sixteen_vectors_of_each_layer_and_at_most_one_gram_matrix_each(two):
    plain, proven = (two[0]["one group"][k] for k in ("without certificates", "fully sharded"))
    vectors = sum(16 * n + 276 for n in plain["sides"])
    gradients = 3  # of all parameters that are no layers
    assert plain["bytes"] == [4 * (vectors + gradients)] * 3
    most = 8 * (vectors + gradients + sum(n * n for n in plain["sides"]))
    assert all(8 * vectors < sent <= most for sent in proven["bytes"])
