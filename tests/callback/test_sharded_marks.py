"""Plain shards with Megatron's marks on two ranks: rows, columns, stripes, and float32 masters."""

from __future__ import annotations

import gc
import sys
import types
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_loops import spectral_norm
from torch import Tensor, nn

from snc_client import SNCallback

pytestmark = pytest.mark.timeout(300)  # processes that start: slow on a busy machine
RANKS = 2
STEPS = 6
# Shape, partition_dim, partition_stride, as Megatron's linear layers mark their weights.
WEIGHTS = {
    "column": ((8, 5), 0, 1),
    "row": ((4, 12), 1, 1),
    "striped": ((12, 5), 0, 3),
}


def mine(whole: Tensor, axis: int, stripes: int, rank: int) -> Tensor:
    parts = whole.chunk(RANKS * stripes, axis)
    return torch.cat(parts[rank::RANKS], axis)


def gathered(local: Tensor, axis: int, stripes: int) -> Tensor:
    every = [torch.empty_like(local) for _ in range(RANKS)]
    dist.all_gather(every, local.contiguous())
    cut = [part.chunk(stripes, axis) for part in every]
    return torch.cat([cut[rank][at] for at in range(stripes) for rank in range(RANKS)], axis)


class Shards(nn.Module):
    """Modules named as in a whole model, each with a part of its weight."""

    def __init__(self, rank: int, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, (shape, axis, stripes) in WEIGHTS.items():
            weight = nn.Parameter(mine(torch.randn(shape) / 3, axis, stripes, rank).to(dtype))
            weight.tensor_model_parallel = True
            weight.partition_dim, weight.partition_stride = axis, stripes
            if dtype is torch.bfloat16:
                weight.main_param = weight.detach().float()
            layer = nn.Linear(1, 1, bias=False)
            layer.weight = weight
            self.add_module(name, layer)


def each(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    torch.set_num_threads(1)
    gc.disable()  # what a closed callback still refers to is not collected by chance
    alone = Shards(rank, torch.float32)
    unknown = SNCallback(alone, threshold="1.02x init")
    reasons = [x.reason for x in unknown.layers.skipped]
    unknown.close()
    # Megatron is not installed here: this is the function by which it gives its groups.
    state = types.ModuleType("megatron.core.parallel_state")
    state.get_tensor_model_parallel_group = lambda: dist.group.WORLD
    sys.modules["megatron.core.parallel_state"] = state
    found = {
        (dtype, action): trained(rank, dtype, action)
        for dtype in ("float32", "bfloat16")
        for action in ("observe", "rescale")
    }
    world = weakref.ref(dist.group.WORLD)
    dist.destroy_process_group()
    torch.save({"reasons": reasons, "kept": world() is not None, **found}, f"{folder}/{rank}.pt")


def trained(rank: int, dtype: str, action: str) -> dict[str, object]:
    model = Shards(rank, getattr(torch, dtype))
    callback = SNCallback(
        model, threshold="1.02x init", action=action, idle_every=1, certify_every=2
    )
    before, after, rows = [], [], []
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        for name, (shape, axis, stripes) in WEIGHTS.items():
            weight = model.get_submodule(name).weight
            master = getattr(weight, "main_param", weight.data)
            step = 0.1 * torch.randn(shape, generator=generator)
            master += mine(step, axis, stripes, rank)
            weight.data.copy_(master)
        before.append(norms(model))
        callback.step()
        after.append(norms(model))
        rows.append({k: dict(v) for k, v in callback.latest.items()})
    callback.close()
    shapes = {x.name: x.shape for x in callback.layers.layers}
    return {"shapes": shapes, "before": before, "after": after, "rows": rows,
            "errors": callback.errors}  # fmt: skip


def norms(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the spectral norms of the stored weight and of the master."""
    found = {}
    for name, (_, axis, stripes) in WEIGHTS.items():
        weight = model.get_submodule(name).weight
        master = getattr(weight, "main_param", weight.data)
        stored = gathered(weight.detach().float(), axis, stripes)
        whole = gathered(master, axis, stripes)
        found[f"{name}.weight"] = (spectral_norm(stored), spectral_norm(whole))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("marks")
    mp.spawn(each, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


def test_without_the_groups_of_megatron_nothing_is_measured(ranks) -> None:
    for rank in ranks:
        assert len(rank["reasons"]) == len(WEIGHTS)
        assert all("megatron.core.parallel_state" in reason for reason in rank["reasons"])


def test_destroying_the_process_group_ends_it_whatever_the_callback_has_summed(ranks) -> None:
    assert not any(rank["kept"] for rank in ranks)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sigma_is_that_of_the_whole_weight_at_every_step(ranks, dtype: str) -> None:
    for rank in ranks:
        found = rank[dtype, "observe"]
        assert found["errors"] == 0
        assert found["shapes"] == {f"{k}.weight": shape for k, (shape, _, _) in WEIGHTS.items()}
        for row, exact in zip(found["rows"][1:], found["before"], strict=False):
            for name, (_, master) in exact.items():
                assert row[name]["sigma"] <= master * (1 + 2e-6)
                assert row[name]["sigma"] >= master * (1 - 1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_shards_are_scaled_by_one_factor_and_the_whole_is_held(ranks, dtype: str) -> None:
    here, there = (rank[dtype, "rescale"] for rank in ranks)
    assert here["rows"] == there["rows"]  # to the last bit
    thresholds = {name: row["threshold"] for name, row in here["rows"][-1].items()}
    rounding = 1.001 if dtype == "float32" else 1.004  # of the cast to bfloat16
    for step in here["after"]:
        for name, (stored, master) in step.items():
            assert master <= thresholds[name] * 1.001
            assert stored <= thresholds[name] * rounding
    scales = [row[name]["scale"] for row in here["rows"][1:] for name in thresholds]
    assert min(scales) < 0.95
    for step, (before, after) in enumerate(zip(here["before"], here["after"], strict=True)):
        if step + 1 < len(here["rows"]):
            for name, row in here["rows"][step + 1].items():
                expected = before[name][1] * row["scale"]
                assert after[name][1] == pytest.approx(expected, rel=1e-5)
