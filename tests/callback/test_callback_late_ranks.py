"""Ranks that are known late, or that hold other layers: one run, one policy, equal replicas."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from snc_client import SNCallback
from snc_client.callback.service import rank_relay
from snc_client.callback.service.rank_relay import PERIOD, News, RankRelay
from snc_service.wire import Command, Policy

RANKS = 2
STRICTER = {"entries": [{"pattern": "*", "threshold": "0.5x init", "action": "rescale"}]}


def join(rank: int, folder: str) -> None:
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)


def late(rank: int, url: str, folder: str) -> None:
    """Make the callback before the process group; leave weights and obeyed commands behind."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 8))
    obeyed = []
    step = 0
    callback = SNCallback(
        model, threshold=100.0, url=url, on_command=lambda c: obeyed.append((step, c.action))
    )
    join(rank, folder)
    replica = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    thresholds = []
    asked = 0
    for step in range(1, 61):
        optimizer.zero_grad()
        replica(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
        callback.step()
        thresholds.append(callback.latest["0.weight"]["threshold"])
        if step == 5 and rank == 0:
            asked = callback.sent_values
            deadline = time.monotonic() + 20
            while not callback.sent_values and time.monotonic() < deadline:
                time.sleep(0.01)
            with httpx.Client(base_url=f"{url}/api/v1/runs/{callback.run}") as run:
                run.put("/policy", json=STRICTER).raise_for_status()
                run.post("/commands", json={"action": "checkpoint"}).raise_for_status()
        if step in (5, 6, 10):  # the next acknowledgement carries both
            time.sleep(1.0)
    callback.close(timeout=30)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    torch.save({"flat": flat, "run": callback.run, "obeyed": obeyed, "limits": thresholds,
                "errors": callback.errors, "asked": asked}, f"{folder}/{rank}.pt")  # fmt: skip
    dist.destroy_process_group()


@pytest.mark.timeout(180)
def test_ranks_that_join_late_are_one_run_and_obey_at_the_same_step(service_url, tmp_path):
    mp.spawn(late, args=(service_url, str(tmp_path)), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    runs = httpx.get(f"{service_url}/api/v1/runs").json()["items"]
    assert [run["run"] for run in runs] == [first["run"]]
    assert second["run"] is None
    assert first["errors"] == second["errors"] == 0
    assert first["obeyed"] == second["obeyed"]
    ((step, action),) = first["obeyed"]
    assert (action, step % PERIOD) == ("checkpoint", 0)
    assert first["limits"] == second["limits"]
    assert len(set(first["limits"][2:])) == 2, "one change of the policy, or this test says nothing"
    assert torch.equal(first["flat"], second["flat"])


def stages(rank: int, url: str, folder: str) -> None:
    """Hold one stage of a pipeline, and a layer that both ranks hold."""
    torch.set_num_threads(1)
    join(rank, folder)
    stage = nn.Module()
    stage.add_module("shared", nn.Linear(4, 4))
    stage.add_module(f"stage{rank}", nn.Linear(8, 8))
    callback = SNCallback(stage, threshold="3x init", url=url, run="pipeline")
    for step in range(5):
        callback.step(loss=float(step + rank))
    if rank:
        callback.close(timeout=30)
    dist.barrier()
    callback.close(timeout=30)  # rank 0 last: it ends the run
    Path(folder, f"{rank}.json").write_text(json.dumps([callback.run, callback.errors]))
    dist.destroy_process_group()


@pytest.mark.timeout(120)
def test_the_layers_of_every_pipeline_stage_are_in_the_one_run(service_url, tmp_path):
    mp.spawn(stages, args=(service_url, str(tmp_path)), nprocs=RANKS)
    assert [json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2)] == [
        ["pipeline", 0],
        ["pipeline", 0],
    ]
    (run,) = httpx.get(f"{service_url}/api/v1/runs").json()["items"]
    layers = httpx.get(f"{service_url}/api/v1/runs/pipeline/layers").json()["items"]
    assert {item["layer"] for item in layers} == {
        "shared.weight",
        "stage0.weight",
        "stage1.weight",
    }
    assert {item["step"] for item in layers} == {5}
    losses = httpx.get(f"{service_url}/api/v1/runs/pipeline/scalars/loss/history").json()
    assert losses["mean"] == [0.0, 1.0, 2.0, 3.0, 4.0], "of rank 0 alone"
    assert (run["state"], run["attempt"]) == ("finished", 0)


def test_news_wait_until_every_rank_has_a_callback(monkeypatch, caplog):
    store = dist.HashStore()
    rank = 0
    monkeypatch.setattr(rank_relay, "shared_store", lambda: store)
    monkeypatch.setattr(rank_relay, "ranks", lambda: (rank, 2))
    policy, command = Policy.parse(STRICTER), Command(1, "stop", "too long")
    first, second = RankRelay(), RankRelay()
    second._key = first._key  # in another process it would be the first one, too
    news = iter([News((3, policy), [command])])

    def step(relay: RankRelay, of: int) -> News:
        nonlocal rank
        rank = of
        return relay.at_step(lambda: next(news, News()))

    for _ in range(2 * PERIOD):
        assert not step(first, 0)
    assert caplog.text.count("is needed on all 2 ranks") == 1
    second._calls = first._calls
    seen = [(step(first, 0), step(second, 1)) for _ in range(2 * PERIOD)]
    obeyed = [(i, both) for i, both in enumerate(seen, 1) if any(both)]
    (at, (there, here)) = obeyed[0]
    assert len(obeyed) == 1
    assert at == 2 * PERIOD
    assert there.policy == here.policy == (3, policy)
    assert tuple(there.commands) == tuple(here.commands) == (command,)


def test_a_store_that_is_gone_is_said_once_and_ends_nothing(monkeypatch, caplog):
    class Gone:
        def __getattr__(self, name: str):
            raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(rank_relay, "shared_store", Gone)
    monkeypatch.setattr(rank_relay, "ranks", lambda: (1, 2))
    relay = RankRelay()
    assert not any(relay.at_step(News) for _ in range(3 * PERIOD))
    assert relay.part(["a"]) is None
    assert caplog.text.count("do not reach each other") == 1
