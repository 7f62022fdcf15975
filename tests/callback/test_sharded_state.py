"""The state of a sharded training, loaded by another number of processes, and by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.distributed.fsdp
import torch.multiprocessing as mp
from sharded_cases import exact, fully_sharded, whole
from torch import nn

from snc_client import SNCallback

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not hasattr(torch.distributed.fsdp, "fully_shard"), reason="needs torch >= 2.6"
    ),
]

GROWTH = 1.5


def continued(model: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Load ``state`` into a callback on larger weights; return what it measures of them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(GROWTH)
    with SNCallback(model, threshold="2x init", idle_every=1) as callback:
        callback.load_state_dict(state)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.0)
        callback.step()
    return {
        "exact": exact(model),
        "sigma": {name: x["sigma"] for name, x in callback.latest.items()},
        "threshold": {name: x["threshold"] for name, x in callback.latest.items()},
        "step": callback.latest.step,
        "state": callback.state_dict(),
        "errors": callback.errors,
    }


def work(rank: int, ranks: int, folder: str, back: bool) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting{ranks}{back}", rank=rank, world_size=ranks
    )
    torch.set_num_threads(1)
    if back:
        state = torch.load(f"{folder}/four-{rank + 2}.pt", weights_only=True)["state"]
        torch.save(continued(fully_sharded(), state), f"{folder}/back-{rank}.pt")
    elif ranks == 2:
        with SNCallback(fully_sharded(), threshold="2x init") as callback:
            state = callback.state_dict()
        dcp.save({"snc": state}, checkpoint_id=f"{folder}/distributed")
        torch.save(state, f"{folder}/state-{rank}.pt")
    else:
        state = torch.load(f"{folder}/state-{rank % 2}.pt", weights_only=True)
        torch.save(continued(fully_sharded(), state), f"{folder}/four-{rank}.pt")
        with SNCallback(fully_sharded(), threshold="2x init") as callback:
            again = {"snc": callback.state_dict()}
            for layer in again["snc"]["layers"].values():
                layer["reference"].zero_()
            dcp.load(again, checkpoint_id=f"{folder}/distributed")
        torch.save(again["snc"], f"{folder}/again-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("states")
    for ranks, back in ((2, False), (4, False), (2, True)):
        mp.spawn(work, args=(ranks, str(folder), back), nprocs=ranks)
    return folder


def read(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def check(found: dict[str, Any], state: dict[str, Any]) -> None:
    assert (found["errors"], found["step"]) == (0, state["step"] + 1)
    for name, norm in found["exact"].items():
        reference = float(state["layers"][name]["reference"])
        assert norm == pytest.approx(GROWTH * reference, rel=1e-5)
        assert found["threshold"][name] == pytest.approx(2 * reference, rel=1e-6)
        assert norm * (1 - 1e-3) <= found["sigma"][name] <= norm * (1 + 2e-6)


def test_all_ranks_save_the_same_state(folder):
    first, second = (read(folder / f"state-{rank}.pt")["layers"] for rank in range(2))
    assert first.keys() == second.keys() == exact(whole()).keys()
    for name, layer in first.items():
        assert torch.equal(layer["block"], second[name]["block"])
        assert torch.equal(layer["reference"], second[name]["reference"])


def test_four_ranks_continue_what_two_have_saved(folder):
    for rank in range(4):
        check(read(folder / f"four-{rank}.pt"), read(folder / "state-0.pt"))


def test_two_ranks_continue_what_four_have_saved(folder):
    for rank in range(2):
        check(read(folder / f"back-{rank}.pt"), read(folder / "four-0.pt")["state"])


def test_a_single_process_continues_what_ranks_have_saved_and_back(folder):
    state = read(folder / "state-0.pt")
    check(continued(whole(), state), state)
    state = read(folder / "four-0.pt")["state"]
    with SNCallback(whole(), threshold="2x init") as callback:
        callback.load_state_dict(state)
        ours = callback.state_dict()["layers"]
    for name, layer in state["layers"].items():
        assert torch.equal(ours[name]["reference"], layer["reference"])


def test_a_distributed_checkpoint_holds_the_state_for_any_number_of_ranks(folder):
    state = read(folder / "state-0.pt")["layers"]
    for rank in range(4):
        for name, layer in read(folder / f"again-{rank}.pt")["layers"].items():
            assert torch.equal(layer["reference"], state[name]["reference"])
            assert torch.equal(layer["block"], state[name]["block"])
