"""Ranks that share weights and do not do the same: no rank waits for ever, and each says why."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.multiprocessing as mp
from sharded_cases import Sentences, exact
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from snc_client import SNCallback
from snc_client.callback.monitor.sharded import meeting, roll_call, sharded_sums
from snc_client.callback.monitor.sharded.gradient_sums import GradientSums
from snc_client.callback.monitor.sharded.groups import Groups
from snc_client.callback.monitor.sharded.layer_sums import LayerSums
from snc_client.callback.monitor.sharded.sharded_group import ShardedGroup
from snc_client.callback.monitor.sharded.sharded_sums import ShardedSums
from snc_client.estimator.sharded_power import ShardedPower

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not hasattr(torch.distributed.fsdp, "fully_shard"), reason="needs torch >= 2.6"
    ),
]

RANKS = 2
NAMES = ["0.weight", "1.weight"]


def small() -> nn.Module:
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False))
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in model:
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
    return model


def grown(model: nn.Module, callback: SNCallback, steps: int = 1) -> None:
    """Make the weights grow by a tenth, as an optimizer does that the callback does not know."""
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.1)
        callback.step()


def seen(callback: SNCallback, model: nn.Module) -> dict[str, Any]:
    return {
        "layers": [x.name for x in callback.layers.layers],
        "reasons": {x.name: x.reason for x in callback.layers.skipped},
        "sigma": {k: reading["sigma"] for k, reading in callback.latest.items()},
        "threshold": {k: reading["threshold"] for k, reading in callback.latest.items()},
        "exact": exact(model),
        "errors": callback.errors,
        "step": callback.latest.step,
    }


def seen_alone(callback: SNCallback) -> dict[str, Any]:
    """Return what needs no collective."""
    layers = [x.name for x in callback.layers.layers]
    return {"layers": layers, "errors": callback.errors}


def only_one_has_a_callback(rank: int) -> dict[str, Any]:
    model, before = small(), meeting.SECONDS
    meeting.SECONDS = 0.2  # type: ignore[misc] # nobody is under way
    for turn in range(RANKS):
        if rank == turn:  # the second one comes when the first has given up
            callback = SNCallback(model, threshold="1x init")
            grown(model, callback)
        dist.barrier()
    meeting.SECONDS = before  # type: ignore[misc]
    callback.close()
    return seen(callback, model)


def policies_differ(rank: int) -> dict[str, Any]:
    model = small()
    with SNCallback(model, threshold=1.0 + rank) as callback:
        grown(model, callback)
    return seen(callback, model)


def one_raises(rank: int) -> dict[str, Any]:
    model, sigmas = small(), []
    with SNCallback(model, threshold="1x init") as callback:
        for step in range(5):
            if rank == 1 and step == 2:
                callback._follower.changed = raises  # type: ignore[method-assign]
            grown(model, callback)
            if rank == 1 and step == 2:
                del callback._follower.changed
            sigmas.append(exact(model)["0.weight"])
    return {**seen(callback, model), "sigmas": sigmas}


def raises() -> bool:
    raise RuntimeError("a fault of this rank")


def one_cannot_read_its_shard(rank: int) -> dict[str, Any]:
    model, sigmas = small(), []
    with SNCallback(model, threshold="1x init") as callback:
        for step in range(4):
            kept = model[0]._parameters["weight"]
            if rank == 1 and step == 1:
                del model[0]._parameters["weight"]
            with torch.no_grad():
                kept.mul_(1.1)
            callback._follower.changed = lambda: False  # type: ignore[method-assign]
            callback.step()
            model[0]._parameters["weight"] = kept
            sigmas.append(exact(model)["0.weight"])
    return {**seen(callback, model), "sigmas": sigmas}


def one_has_another_reference(rank: int) -> dict[str, Any]:
    model = small()
    before = exact(model)["0.weight"]
    with SNCallback(model, threshold="1x init") as callback:
        state = callback.state_dict()
        if rank:
            state["layers"]["0.weight"]["reference"] *= 2
        callback.load_state_dict(state)
        grown(model, callback, 6)
    return {**seen(callback, model), "before": before}


def one_counts_other_steps(rank: int) -> dict[str, Any]:
    model = small()
    with SNCallback(model, threshold="1x init") as callback:
        state = callback.state_dict()
        callback.load_state_dict({**state, "step": rank})
        grown(model, callback, 6)
    return seen(callback, model)


def sharded_anew(rank: int) -> dict[str, Any]:
    from torch.distributed.tensor import Shard

    model = small()
    with SNCallback(model, threshold="1x init") as callback:
        grown(model, callback)
        other = model[0].weight.detach().redistribute(placements=[Shard(1)])
        model[0].weight = nn.Parameter(other)
        grown(model, callback, 6)
    return seen(callback, model)


def late(rank: int) -> dict[str, Any]:
    model, store = small(), dist.distributed_c10d._get_default_store()
    with SNCallback(model, threshold="1x init") as callback:
        for step in range(3):
            if rank == 1:  # not before the other one has come as far as its measurement
                store.wait([f"late/{step}"])
            else:
                store.set(f"late/{step}", "")
            grown(model, callback)
    return seen(callback, model)


def without_the_service(rank: int) -> dict[str, Any]:
    model = small()
    callback = SNCallback(model, threshold="1x init", url="http://127.0.0.1:9", run="lost")
    grown(model, callback, 3)
    callback.close(timeout=0.1)
    return seen(callback, model)


def a_mesh_of_the_other(rank: int) -> dict[str, Any]:
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False))
    part = distribute_tensor(model[1].weight.detach(), DeviceMesh("cpu", [0]), [Shard(0)])
    model[1].weight = nn.Parameter(part)
    with SNCallback(model, threshold="1x init") as callback:
        with torch.no_grad():
            model[0].weight.mul_(1.1)
        callback.step()
    return {
        "layers": [x.name for x in callback.layers.layers],
        "reasons": {x.name: x.reason for x in callback.layers.skipped},
        "errors": callback.errors,
    }


def the_group_is_destroyed(rank: int) -> dict[str, Any]:
    model = small()
    callback = SNCallback(model, threshold="1x init")
    grown(model, callback)
    found, before = seen(callback, model), model[0].weight.to_local().detach().clone()
    dist.destroy_process_group()
    grown(model, callback, 2)
    callback.close()
    ratio = float((model[0].weight.to_local() / before).mean())
    return {**found, "errors": callback.errors, "unwritten": ratio}


def one_skips_a_step(rank: int) -> dict[str, Any]:
    model, before = small(), roll_call.SECONDS
    roll_call.SECONDS = 0.2  # type: ignore[misc] # the other one is not under way
    with SNCallback(model, threshold="1x init") as callback:
        grown(model, callback)
        if rank == 0:
            grown(model, callback)
        dist.barrier()  # as a training goes on: a sum that waited would not let it
        start = exact(model)["1.weight"]
        grown(model, callback, 4)
        roll_call.SECONDS = before  # type: ignore[misc]
        return {**seen(callback, model), "grew": exact(model)["1.weight"] / start}


def one_closes_early(rank: int) -> dict[str, Any]:
    model = small()
    callback = SNCallback(model, threshold="1x init")
    grown(model, callback)
    if rank:
        callback.close()
    start = exact(model)["1.weight"]
    grown(model, callback, 4)  # a closed one does nothing
    callback.close()
    return {**seen(callback, model), "grew": exact(model)["1.weight"] / start}


def one_loads_alone(rank: int) -> dict[str, Any]:
    model = small()
    with SNCallback(model, threshold="1x init") as callback:
        grown(model, callback)
        start = exact(model)["1.weight"]
        if rank:
            callback.load_state_dict(callback.state_dict())
        grown(model, callback, 4)
        return {**seen(callback, model), "grew": exact(model)["1.weight"] / start}


class Stopped(BaseException):
    """As an interrupt is: nothing but the loop itself may stop it."""


# What a rank calls between its answer to the roll call and the end of its sums.
POINTS: list[tuple[object, str]] = [
    (ShardedGroup, "_codes"),
    (ShardedPower, "agreed"),
    (ShardedPower, "explored"),
    (ShardedSums, "_looked_up"),
    (ShardedSums, "_ahead"),
    (ShardedSums, "_squares"),
    (GradientSums, "shares"),
    (sharded_sums, "bands"),
    (LayerSums, "packed"),
    (Groups, "sum_"),
]


def one_raises_after_its_answer(rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for where, name in POINTS:
        for error in (RuntimeError, Stopped):
            found[f"{name}, {error.__name__}"] = raised_at(rank, where, name, error)
    return found


def raised_at(rank: int, where: object, name: str, error: type[BaseException]) -> dict[str, Any]:
    model, sigmas, stopped = small(), [], 0

    def fails(*_: object, **__: object) -> None:
        raise error(name)

    with SNCallback(model, threshold="1x init") as callback:
        for step in range(3):
            with pytest.MonkeyPatch.context() as patch:
                if rank == 1 and step == 1:
                    patch.setattr(where, name, fails)
                try:
                    grown(model, callback)
                except Stopped:
                    stopped += 1
            sigmas.append(exact(model)["0.weight"])
    return {**seen(callback, model), "sigmas": sigmas, "stopped": stopped}


def one_raises_at_its_first_sums(rank: int) -> dict[str, Any]:
    model, raised = small(), 0
    calls = itertools.count()
    whole = ShardedPower.explored

    def fails(*arguments: Any) -> Any:
        if next(calls) == 20:
            raise Stopped
        return whole(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(ShardedPower, "explored", fails)
        try:
            callback = SNCallback(model, threshold="1x init")
        except Stopped:
            raised = 1
    if not raised:
        grown(model, callback, 5)
        callback.close()
        return {**seen_alone(callback), "raised": raised}
    return {"raised": raised}


CASES: list[Callable[[int], dict[str, Any]]] = [
    only_one_has_a_callback,
    policies_differ,
    one_raises,
    one_cannot_read_its_shard,
    one_has_another_reference,
    one_counts_other_steps,
    sharded_anew,
    late,
    without_the_service,
    a_mesh_of_the_other,
    one_skips_a_step,
    one_closes_early,
    one_loads_alone,
    one_raises_after_its_answer,
    one_raises_at_its_first_sums,
    the_group_is_destroyed,
]


def work(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    torch.set_num_threads(1)
    found = {}
    for case in CASES:
        sentences = Sentences()
        logging.getLogger("snc").addHandler(sentences)
        found[case.__name__] = case(rank)
        logging.getLogger("snc").removeHandler(sentences)
        found[case.__name__]["said"] = sentences.said
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def of(ranks: list[dict[str, Any]], case: Callable[[int], object]) -> list[dict[str, Any]]:
    return [rank[case.__name__] for rank in ranks]


def test_a_rank_without_a_callback_is_noticed_by_those_that_have_one(ranks):
    for rank in of(ranks, only_one_has_a_callback):
        assert rank["layers"] == []
        assert rank["errors"] == 0
        assert "must be made on all 2 ranks" in rank["reasons"]["0.weight"]
        assert len(rank["said"]) == 1


def test_different_policies_are_noticed_by_every_rank(ranks):
    for rank in of(ranks, policies_differ):
        assert (rank["layers"], rank["errors"]) == ([], 0)
        assert "must have the same policy" in rank["reasons"]["0.weight"]
        assert len(rank["said"]) == 1


@pytest.mark.parametrize("case", [one_raises, one_cannot_read_its_shard])
def test_nothing_is_written_at_a_step_to_which_a_rank_gives_no_share(ranks, case):
    first, second = of(ranks, case)
    assert first["sigmas"] == second["sigmas"]
    start = first["sigmas"][0]
    lost = 2 if case is one_raises else 1
    for step, sigma in enumerate(first["sigmas"]):
        assert sigma == pytest.approx(start * (1.1 if step == lost else 1), rel=2e-3), step
    assert (first["errors"], second["errors"]) == (0, int(case is one_raises))
    assert first["layers"] == second["layers"] == NAMES


def test_nothing_is_measured_where_ranks_would_not_scale_alike(ranks):
    for rank in of(ranks, one_has_another_reference):
        assert rank["layers"] == ["1.weight"]
        assert "not measured any more" in rank["reasons"]["0.weight"]
        assert rank["exact"]["0.weight"] == pytest.approx(rank["before"] * 1.1**6)
        assert rank["exact"]["1.weight"] <= rank["threshold"]["1.weight"] * 1.001


def test_ranks_that_count_different_steps_measure_nothing(ranks):
    for rank in of(ranks, one_counts_other_steps):
        assert rank["layers"] == []
        assert any("do not make the same steps" in each for each in rank["said"])


def test_a_weight_that_is_sharded_anew_is_not_covered_any_more(ranks):
    for rank in of(ranks, sharded_anew):
        assert (rank["layers"], rank["errors"]) == (["1.weight"], 0)
        assert "not measured any more" in rank["reasons"]["0.weight"]
        assert rank["exact"]["1.weight"] <= rank["threshold"]["1.weight"] * 1.001


@pytest.mark.parametrize("case", [late, without_the_service])
def test_a_late_rank_and_a_lost_service_change_nothing(ranks, case):
    for rank in of(ranks, case):
        assert (rank["layers"], rank["errors"]) == (NAMES, 0)
        for name, norm in rank["exact"].items():
            assert norm == pytest.approx(rank["threshold"][name], rel=2e-3)


def test_a_mesh_without_a_rank_is_none_of_its_business(ranks):
    first, second = of(ranks, a_mesh_of_the_other)
    assert first["layers"] == NAMES
    assert second["layers"] == ["0.weight"]
    assert "a mesh without this rank" in second["reasons"]["1.weight"]
    assert first["errors"] == second["errors"] == 0


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (one_skips_a_step, "a rank has not come to its step in time"),
        (one_closes_early, "a rank has closed its callback"),
        (one_loads_alone, "the ranks do not make the same steps"),
    ],
)
def test_no_rank_waits_in_vain_for_one_that_does_otherwise(ranks, case, why):
    for number, rank in enumerate(of(ranks, case)):
        closed = case is one_closes_early and number == 1
        said = [each for each in rank["said"] if "sharded" in each]
        assert said == [f"snc: {why}: sharded layers are not measured any more"] * (not closed)
        assert rank["errors"] == 0
        assert rank["grew"] == pytest.approx(1.1**4)  # written by nobody
        assert rank["layers"] == (NAMES if closed else [])


def test_a_group_that_is_destroyed_ends_the_measurements_and_nothing_else(ranks):
    for rank in of(ranks, the_group_is_destroyed):
        assert rank["errors"] == 0
        assert len([each for each in rank["said"] if "the process group is gone" in each]) == 1
        assert rank["unwritten"] == pytest.approx(1.1**2)


@pytest.mark.parametrize("name", [name for _, name in POINTS])
@pytest.mark.parametrize("error", ["RuntimeError", "Stopped"])
def test_a_rank_that_raises_after_its_answer_leaves_no_other_in_a_sum(ranks, name, error):
    first, second = (rank[f"{name}, {error}"] for rank in of(ranks, one_raises_after_its_answer))
    assert first["sigmas"] == second["sigmas"]
    start = first["sigmas"][0]
    for step, sigma in enumerate(first["sigmas"]):
        assert sigma == pytest.approx(start * (1.1 if step == 1 else 1), rel=2e-3), step
    assert (first["errors"], first["stopped"]) == (0, 0)
    assert (second["errors"], second["stopped"]) == (0, int(error == "Stopped"))
    assert first["layers"] == second["layers"] == NAMES


def test_a_rank_that_raises_while_its_callback_is_made_leaves_no_other_in_a_sum(ranks):
    first, second = of(ranks, one_raises_at_its_first_sums)
    assert (first["raised"], first["errors"], second["raised"]) == (0, 0, 1)
    assert first["layers"] == []
    assert any("do not make the same steps" in x or "has closed" in x for x in first["said"])


def dying(rank: int, folder: str) -> None:
    """Grow a weight on three ranks, of which the last one dies between its answer and its sum."""
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS + 1
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mesh, model = init_device_mesh("cpu", (RANKS + 1,)), nn.Linear(6, 8, bias=False)
    model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
    sentences = Sentences()
    logging.getLogger("snc").addHandler(sentences)
    callback = SNCallback(model, threshold="1x init")
    grown(model, callback)
    if rank == RANKS:
        Groups.sum_ = lambda *_: os._exit(0)  # type: ignore[method-assign, assignment]
    grown(model, callback, 5)
    found = {**seen_alone(callback), "said": sentences.said}
    callback.close()
    torch.save(found, f"{folder}/{rank}.pt")
    os._exit(0)  # the group cannot be destroyed in order


def test_a_rank_that_dies_after_its_answer_leaves_no_other_in_a_sum(tmp_path):
    mp.spawn(dying, args=(str(tmp_path),), nprocs=RANKS + 1)
    for rank in range(RANKS):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert (found["errors"], found["layers"]) == (0, [])
        said = [x for x in found["said"] if "not measured any more" in x]
        assert len(said) == 1
        assert "a rank has gone in the middle of a sum" in said[0] or "given up a sum" in said[0]
