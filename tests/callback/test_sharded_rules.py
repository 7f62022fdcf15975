"""What a policy may ask of shards: each action, several optimizers, equal replicas."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.multiprocessing as mp
from sharded_cases import Sentences, exact, gathered
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from snc_client import SNCallback, ThresholdBreached
from snc_client.callback.monitor.sharded.groups import Groups

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not hasattr(torch.distributed.fsdp, "fully_shard"), reason="needs torch >= 2.6"
    ),
]

RANKS = 4
NAMES = ["0.weight", "2.weight"]
MANY = 200


def replicated() -> nn.Module:
    """Return a model whose halves lie on two ranks, and its replica on two more."""
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 5))
    names = ("replicas", "shards")
    return fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=names))


def stepped(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(dist.get_rank()))
    for optimizer in optimizers:
        optimizer.zero_grad()
    (model(x) - 3).square().mean().backward()
    for optimizer in optimizers:
        optimizer.step()


def normalized() -> dict[str, Any]:
    model = replicated()
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    norms = []
    with SNCallback(model, threshold="0.5x init", action="normalize", optimizer=sgd) as callback:
        for _ in range(4):
            stepped(model, sgd)
            norms.append(exact(model))
    limits = {k: reading["threshold"] for k, reading in callback.latest.items()}
    return {"norms": norms, "thresholds": limits, "errors": callback.errors}


def stopped() -> dict[str, Any]:
    model = replicated()
    before = exact(model)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    found: dict[str, Any] = {"step": None}
    with SNCallback(model, threshold="1.02x init", action="stop", optimizer=sgd) as callback:
        for step in range(1, 40):
            try:
                stepped(model, sgd)
            except ThresholdBreached as breach:
                found = {"step": step, "said": str(breach)}
                break
    after = exact(model)
    grew = max(after[name] / before[name] for name in NAMES)
    return {**found, "grew": grew, "errors": callback.errors}


def capped() -> dict[str, Any]:
    """Cap shards of two processes and their replicas, one of them wide; with ``sgd``'s own step."""
    model = replicated()
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    before: list[dict[str, torch.Tensor]] = []
    sgd.register_step_post_hook(lambda *_: before.append(matrices(model)))
    return cap_of(model, before, lambda: stepped(model, sgd), sgd)


def capped_on_two_dimensions(leap: float = 0.0) -> dict[str, Any]:
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(1)
    mesh = init_device_mesh("cpu", (2, 2))
    model = nn.Sequential(nn.Linear(6, 9, bias=False), nn.Tanh(), nn.Linear(9, 5, bias=False))
    for layer in (model[0], model[2]):
        part = distribute_tensor(layer.weight.detach(), mesh, [Shard(0), Shard(1)])
        layer.weight = nn.Parameter(part)
    before: list[dict[str, torch.Tensor]] = []

    def grow() -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05).add_(leap if len(before) == 2 else 0.0)
        before.append(matrices(model))

    return cap_of(model, before, grow, None)


def capped_after_a_leap() -> dict[str, Any]:
    """Beside a singular value of 1e7 the Gram matrix in float64 knows the others to 0.1 at best."""
    return capped_on_two_dimensions(leap=1e6)


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: gathered(p).clone() for k, p in model.named_parameters() if p.ndim == 2}


def cap_of(
    model: nn.Module,
    before: list[dict[str, torch.Tensor]],
    step: Callable[[], None],
    optimizer: torch.optim.Optimizer | None,
) -> dict[str, Any]:
    after, scales = [], []
    with SNCallback(model, threshold="0.8x init", action="cap", optimizer=optimizer) as callback:
        for _ in range(4):
            step()
            if optimizer is None:
                callback.step()
            after.append(matrices(model))
            scales.append({k: reading["scale"] for k, reading in callback.latest.items()})
    scales.append({k: reading["scale"] for k, reading in callback.latest.items()})
    limits = {k: reading["threshold"] for k, reading in callback.latest.items()}
    errors = callback.errors
    return {
        "before": before,
        "after": after,
        "scales": scales[1:],  # a reading is of the step before
        "thresholds": limits,
        "errors": errors,
    }


def two_optimizers() -> dict[str, Any]:
    model = replicated()
    first = torch.optim.SGD(model[0].parameters(), lr=0.01)
    second = torch.optim.SGD(model[2].parameters(), lr=0.01)
    with SNCallback(model, threshold="0.9x init", optimizer=[first, second]) as callback:
        stepped(model, first, second)
    limits = {k: reading["threshold"] for k, reading in callback.latest.items()}
    return {"norms": [exact(model)], "thresholds": limits, "errors": callback.errors}


def refused() -> dict[str, Any]:
    with pytest.raises(ValueError, match="sharded") as error:
        SNCallback(replicated(), threshold="1x init", masters={"0.weight": torch.zeros(9, 6)})
    return {"refusal": str(error.value)}


def many_steps() -> dict[str, Any]:
    model = replicated()
    adam = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scales = []
    with SNCallback(model, threshold="1.01x init", optimizer=adam, idle_every=1) as callback:
        for _ in range(MANY):
            stepped(model, adam)
            scales += [reading["scale"] for reading in callback.latest.values()]
    shards = {k: p.to_local().detach().clone() for k, p in model.named_parameters()}
    return {
        "shards": shards,
        "held": sum(x is not None and x < 1 for x in scales),
        "errors": callback.errors,
    }


def lost_between_stages() -> dict[str, Any]:
    """Grow weights cut along both dimensions and along one; a rank raises between their sums."""
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 4, bias=False))
    both, one = (layer.weight.detach() for layer in model)
    model[0].weight = nn.Parameter(distribute_tensor(both, mesh, [Shard(0), Shard(1)]))
    model[1].weight = nn.Parameter(distribute_tensor(one, mesh["tp"], [Shard(0)]))
    sum_, norms, counts = Groups.sum_, [], list[int]()

    def second_fails(groups: Groups, parts: Any) -> None:
        counts[-1] += 1
        if counts[-1] == 2:
            raise RuntimeError("a fault of this rank")
        sum_(groups, parts)

    with SNCallback(model, threshold="1x init") as callback:
        for step in range(3):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.1)
            counts.append(0)
            with pytest.MonkeyPatch.context() as patch:
                if step == 1 and dist.get_rank() == 1:
                    patch.setattr(Groups, "sum_", second_fails)
                callback.step()
            norms.append(exact(model))
    limits = {k: reading["threshold"] for k, reading in callback.latest.items()}
    return {"norms": norms, "thresholds": limits, "errors": callback.errors, "counts": counts}


CASES = [
    lost_between_stages,
    normalized,
    stopped,
    capped,
    capped_on_two_dimensions,
    capped_after_a_leap,
    two_optimizers,
    refused,
    many_steps,
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
        found[case.__name__] = case()
        logging.getLogger("snc").removeHandler(sentences)
        found[case.__name__].setdefault("said", sentences.said)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def test_a_rank_that_raises_between_its_sums_acts_on_what_the_others_act_on(ranks):
    assert ranks[1]["lost_between_stages"]["counts"][1] == 2
    for rank in ranks:
        found = rank["lost_between_stages"]
        assert found["errors"] == 0
        assert found["norms"] == ranks[0]["lost_between_stages"]["norms"]
        for step, norms in enumerate(found["norms"]):
            # The sum of the layer that is cut once was made, that of the other one was not.
            for name, lost in (("0.weight", step == 1), ("1.weight", False)):
                limit = found["thresholds"][name] * (1.1 if lost else 1)
                assert norms[name] == pytest.approx(limit, rel=2e-3), (step, name)


def test_normalize_brings_the_whole_matrix_to_its_threshold_at_every_step(ranks):
    for rank in ranks:
        found = rank["normalized"]
        assert found["errors"] == 0
        for norms in found["norms"]:
            for name in NAMES:
                assert norms[name] == pytest.approx(found["thresholds"][name], rel=2e-3)


def test_stop_raises_at_the_same_step_on_every_rank_and_writes_nothing(ranks):
    first = ranks[0]["stopped"]
    assert "must be at most" in first["said"]
    assert first["grew"] > 1.02
    assert all(rank["stopped"] == first for rank in ranks)


def test_shards_far_above_the_threshold_are_held_by_a_cap_too(ranks):
    for rank in ranks:
        found = rank["capped_after_a_leap"]
        assert found["errors"] == 0
        for after in found["after"]:
            for name, limit in found["thresholds"].items():
                norm = torch.linalg.matrix_norm(after[name].double(), 2)
                assert norm <= limit * (1 + 2.0**-24 * 3), name


@pytest.mark.parametrize("case", ["capped", "capped_on_two_dimensions"])
def test_a_cap_of_shards_clips_singular_values_and_leaves_the_others(ranks, case):
    for rank in ranks:
        found = rank[case]
        assert found["errors"] == 0
        for before, after, scales in zip(
            found["before"], found["after"], found["scales"], strict=True
        ):
            for name in NAMES:
                limit = found["thresholds"][name]
                u, s, vh = torch.linalg.svd(before[name].double(), full_matrices=False)
                expected = u * s.clamp(max=limit) @ vh
                assert (after[name].double() - expected).abs().max() <= 1e-6
                norm = torch.linalg.matrix_norm(after[name].double(), 2)
                assert norm <= limit * (1 + 2.0**-24 * 3)
                assert scales[name] == pytest.approx(min(1.0, limit / float(s[0])), rel=1e-6)
                assert s[-1] < limit  # something is left as it is
        assert min(x for scales in found["scales"] for x in scales.values()) < 0.95
    assert all(torch.equal(a, b) for a, b in zip(*all_entries(ranks, case), strict=True))


def all_entries(ranks: list[dict[str, Any]], case: str) -> list[list[torch.Tensor]]:
    return [[x for step in rank[case]["after"] for x in step.values()] for rank in ranks[:2]]


def test_shards_of_another_optimizer_are_named_and_not_held(ranks):
    for rank in ranks:
        found = rank["two_optimizers"]
        said = [x for x in found["said"] if "optimizer" in x]
        assert len(said) == 1
        assert "2.weight" in said[0]
        assert "0.weight" not in said[0]
        limits, norms = found["thresholds"], found["norms"][0]
        assert norms["0.weight"] == pytest.approx(limits["0.weight"], rel=2e-3)
        assert norms["2.weight"] > limits["2.weight"] * 1.05


def test_masters_of_shards_are_refused_in_one_sentence(ranks):
    for rank in ranks:
        assert "masters must be of whole weights" in rank["refused"]["refusal"]


def test_replicas_are_equal_to_the_last_bit_after_many_held_steps(ranks):
    found = [rank["many_steps"] for rank in ranks]
    assert found[0]["held"] > MANY / 2
    for first, second in ((0, 2), (1, 3)):
        for name, shard in found[first]["shards"].items():
            assert torch.equal(shard, found[second]["shards"][name]), name
