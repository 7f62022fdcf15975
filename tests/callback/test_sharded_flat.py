"""FSDP1 on two ranks, with and without ``use_orig_params``: flat memory, by its own offsets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_loops import spectral_norm
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.fsdp import ShardingStrategy

from snc_client import SNCallback

pytestmark = pytest.mark.timeout(300)  # processes that start: slow on a busy machine
RANKS = 2
STEPS = 6
NAMES = ("first.weight", "second.0.weight", "second.2.weight", "head.weight", "tied.weight")


class Model(nn.Module):
    """Flat memory of odd sizes: the ranks meet within a row, and one weight lies on one rank."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(6, 11)
        self.second = nn.Sequential(nn.Linear(11, 9), nn.Tanh(), nn.Linear(9, 3, bias=False))
        self.head = nn.Linear(3, 5)
        self.tied = nn.Linear(3, 5)
        self.tied.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).tanh())
        return self.head(y) + self.tied(y)


KINDS = {
    "whole": None,
    "flat": {"use_orig_params": False},
    "names": {"use_orig_params": True},
    "names, whole on each": {
        "use_orig_params": True,
        "sharding_strategy": ShardingStrategy.NO_SHARD,
    },
}


def each_kind(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    torch.set_num_threads(1)
    found = {
        f"{kind}, {action}": trained(kind, action)
        for kind in KINDS
        for action in ("observe", "rescale")
    }
    with pytest.raises(ValueError, match="guard must be False for a sharded model"):
        SNCallback(FSDP(Model(), device_id=torch.device("cpu"), use_orig_params=True), guard=True)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def trained(kind: str, action: str) -> dict[str, object]:
    model: nn.Module = Model()
    if (arguments := KINDS[kind]) is not None:
        model.second = FSDP(model.second, device_id=torch.device("cpu"), **arguments)
        model = FSDP(model, device_id=torch.device("cpu"), **arguments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    callback = SNCallback(
        model,
        optimizer=optimizer,
        threshold="1.02x init",
        action=action,
        idle_every=1,
        certify_every=2,
        signals=("frobenius", "grad_norm", "update_norm"),
    )
    exact: list[dict[str, float]] = []
    rows: list[dict[str, dict[str, float]]] = []
    totals: list[float | None] = []
    for step in range(STEPS):
        x = torch.randn(7, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - 2).square().mean().backward()
        optimizer.step()
        rows.append({k: dict(v) for k, v in callback.latest.items()})
        totals.append(callback.latest.scalars.get("grad_norm"))
        exact.append(norms(model))
    names = [layer.name for layer in callback.layers.layers]
    shapes = {layer.name: layer.shape for layer in callback.layers.layers}
    callback.close()
    return {
        "names": names,
        "shapes": shapes,
        "aliases": [layer.names for layer in callback.layers.layers],
        "rows": rows,
        "totals": totals,
        "exact": exact,
        "errors": callback.errors,
        "skipped": {x.name: x.reason for x in callback.layers.skipped},
    }


def norms(model: nn.Module) -> dict[str, float]:
    if isinstance(model, FSDP):
        with FSDP.summon_full_params(model, writeback=False):
            return norms_of(model.module)
    return norms_of(model)


def norms_of(model: nn.Module) -> dict[str, float]:
    weights = {k.replace("_fsdp_wrapped_module.", ""): p for k, p in model.named_parameters()}
    return {k: spectral_norm(p.detach()) for k, p in weights.items() if p.ndim == 2}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    folder: Path = tmp_path_factory.mktemp("flat")
    mp.spawn(each_kind, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


SHARDED = [kind for kind in KINDS if kind != "whole"]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_named_and_shaped_as_in_the_whole_model(ranks, kind: str) -> None:
    whole = ranks[0]["whole, observe"]
    for rank in ranks:
        found = rank[f"{kind}, observe"]
        assert found["errors"] == 0
        assert sorted(found["names"]) == sorted(whole["names"])
        assert found["shapes"] == whole["shapes"]
        assert ("head.weight", "tied.weight") in [tuple(names[:2]) for names in found["aliases"]]


@pytest.mark.parametrize("kind", SHARDED)
def test_sigma_is_that_of_the_gathered_weight_at_every_step(ranks, kind: str) -> None:
    for rank in ranks:
        found = rank[f"{kind}, observe"]
        for row, exact in zip(found["rows"][1:], found["exact"], strict=False):
            for name, value in exact.items():
                assert row[name]["sigma"] <= value * (1 + 2e-6)
                assert row[name]["sigma"] >= value * (1 - 1e-3)


@pytest.mark.parametrize("kind", SHARDED)
def test_every_weight_is_held_after_every_step(ranks, kind: str) -> None:
    found = ranks[0][f"{kind}, rescale"]
    thresholds = {name: row["threshold"] for name, row in found["rows"][-1].items()}
    for exact in found["exact"]:
        for name, value in exact.items():
            assert value <= thresholds[name] * 1.001
    last = ranks[0][f"{kind}, observe"]["exact"][-1]
    assert any(last[name] > thresholds[name] * 1.05 for name in last)  # it had to be


@pytest.mark.parametrize("kind", SHARDED)
def test_the_norm_of_all_gradients_is_that_of_the_whole_training(ranks, kind: str) -> None:
    whole = ranks[0]["whole, observe"]["totals"]
    for rank in ranks:
        found = rank[f"{kind}, observe"]["totals"]
        assert found[1] == pytest.approx(whole[1], rel=1e-5)
        # Later ones differ by what the training makes of rounding: a part would be off by far more.
        assert found[2:] == pytest.approx(whole[2:], rel=1e-2)


@pytest.mark.parametrize("kind", SHARDED)
def test_all_numbers_are_those_of_the_whole_training(ranks, kind: str) -> None:
    for action in ("observe", "rescale"):
        whole = ranks[0][f"whole, {action}"]["rows"]
        here, there = (rank[f"{kind}, {action}"]["rows"] for rank in ranks)
        assert here == there  # to the last bit on both ranks
        # Of the first step: later ones differ by what the training makes of rounding.
        for name, row in whole[1].items():
            for metric in ("threshold", "frobenius", "grad_norm", "update_norm"):
                assert here[1][name][metric] == pytest.approx(row[metric], rel=1e-5), metric
            # A block of vectors along the long side finds a leap later, and is careful meanwhile.
            assert 0.97 * row["scale"] <= here[1][name]["scale"] <= row["scale"] * (1 + 1e-5)
