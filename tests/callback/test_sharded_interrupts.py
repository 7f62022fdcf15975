"""A rank that is interrupted in a measurement, and goes on: no other rank notices."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.multiprocessing as mp
from sharded_cases import Sentences, fully_sharded, losses
from torch import nn

from snc_client import SNCallback
from snc_client.callback import interruption
from snc_client.callback.collector import RowCollector
from snc_client.callback.monitor.sharded.actions import ShardedActions
from snc_client.callback.monitor.sharded.groups import Groups
from snc_client.callback.monitor.sharded.roll_call import RollCall
from snc_client.callback.readback.in_flight import InFlight
from snc_client.estimator.sharded_power import ShardedPower

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        not hasattr(torch.distributed.fsdp, "fully_shard"), reason="needs torch >= 2.6"
    ),
]

RANKS = 2
# What a rank calls in a measurement, from its start to its end.
POINTS: list[tuple[type, str]] = [
    (RowCollector, "collect"),
    (RollCall, "answered"),
    (ShardedPower, "share"),
    (Groups, "sum_"),
    (ShardedActions, "act"),
    (InFlight, "ship"),
]


@contextmanager
def interrupted_in(where: type, name: str) -> Iterator[None]:
    """Send this process an interrupt whenever ``name`` has been called."""
    whole = getattr(where, name)

    def interrupts(*arguments: Any, **keywords: Any) -> Any:
        found = whole(*arguments, **keywords)
        signal.raise_signal(signal.SIGINT)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(where, name, interrupts)
        yield


@contextmanager
def interrupted_while_it_waits(times: int) -> Iterator[None]:
    """Send this process interrupts from another thread once it waits for the other rank."""

    def interrupts() -> None:
        waiting.wait(60)
        for number in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            while number + 1 < times and len(interruption._came) <= number and not over.is_set():
                time.sleep(0.01)  # Python would merge two that come at once

    waiting, over, whole = threading.Event(), threading.Event(), RollCall._awaited

    def waits(*arguments: Any) -> str:
        waiting.set()
        return whole(*arguments)

    thread = threading.Thread(target=interrupts)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RollCall, "_awaited", waits)
        try:
            yield
        finally:
            over.set()
            waiting.set()
            thread.join()


def trained(
    before: Callable[[int], None] = lambda step: None,
    caught_one: Callable[[], None] = lambda: None,
    **at: Callable[[], Any],
) -> dict[str, Any]:
    """Train a model; its loop catches interrupts of a measurement and goes on."""
    model, sentences, caught = fully_sharded(), Sentences(), 0
    logging.getLogger("snc").addHandler(sentences)
    stepper = torch.optim.AdamW(model.parameters(), lr=3e-3)
    with SNCallback(model, threshold="1.01x init", idle_every=1, certify_every=3) as callback:
        for step in range(1, 11):
            stepper.zero_grad()
            losses(model, step).backward()
            stepper.step()
            before(step)
            try:
                with at[f"step{step}"]() if f"step{step}" in at else nothing():
                    callback.step()
            except KeyboardInterrupt:
                caught += 1
                caught_one()
        covered = [x.name for x in callback.layers.layers]
    logging.getLogger("snc").removeHandler(sentences)
    scales = {name: reading["scale"] for name, reading in callback.latest.items()}
    return {
        "weights": local(model),
        "said": sentences.said,
        "caught": caught,
        "covered": covered,
        "errors": callback.errors,
        "scales": scales,
    }


@contextmanager
def nothing() -> Iterator[None]:
    yield


def local(model: nn.Module) -> list[torch.Tensor]:
    return [p.to_local().detach().clone() for p in model.parameters()]


def at_every_point(rank: int) -> dict[str, Any]:
    return trained(
        **{
            f"step{2 + i}": (lambda point=point: interrupted_in(*point))
            for i, point in enumerate(POINTS)
            if rank == 1
        }
    )


def while_it_waits(rank: int) -> dict[str, Any]:
    def late(step: int) -> None:
        time.sleep(0.3 * (step == 4 and rank == 0))

    here = {"step4": lambda: interrupted_while_it_waits(1)}
    return trained(late, **(here if rank == 1 else {}))


def who_insists(rank: int, folder: str) -> dict[str, Any]:
    """Rank 0 does not come before rank 1 has stopped to wait."""
    given_up = Path(folder) / "given up"

    def comes(step: int) -> None:
        if step == 4 and rank == 0:
            deadline = time.monotonic() + 120
            while not given_up.exists() and time.monotonic() < deadline:
                time.sleep(0.01)

    here = {"step4": lambda: interrupted_while_it_waits(2)}
    return trained(comes, given_up.touch, **(here if rank == 1 else {}))


def work(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS
    )
    torch.set_num_threads(1)
    found = {
        "never": trained(),
        "everywhere": at_every_point(rank),
        "waiting": while_it_waits(rank),
        "twice": who_insists(rank, folder),
    }
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize(("way", "times"), [("everywhere", len(POINTS)), ("waiting", 1)])
def test_an_interrupt_reaches_the_loop_and_changes_no_bit_on_any_rank(ranks, way, times):
    assert ranks[1][way]["caught"] == times
    for rank in ranks:
        assert (rank[way]["errors"], rank[way]["said"]) == (0, rank["never"]["said"])
        assert rank[way]["covered"] == rank["never"]["covered"]
        for ours, theirs in zip(rank[way]["weights"], rank["never"]["weights"], strict=True):
            assert torch.equal(ours, theirs)
    assert ranks[0][way]["scales"] == ranks[1][way]["scales"] == ranks[0]["never"]["scales"]
    assert min(ranks[0][way]["scales"].values()) < 1


def test_a_second_interrupt_ends_the_wait_and_the_measurements_on_every_rank(ranks):
    assert ranks[1]["twice"]["caught"] == 1
    for rank in ranks:
        assert rank["twice"]["errors"] == 0
        said = [x for x in rank["twice"]["said"] if "interrupted twice" in x]
        assert said == [
            "snc: a rank was interrupted twice while it waited: "
            "sharded layers are not measured any more"
        ]
        assert rank["twice"]["covered"] == []
