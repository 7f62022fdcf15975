"""What measuring sharded weights costs on 1, 2 and 4 gloo ranks: CPU time and bytes of a step.

    OMP_NUM_THREADS=1 python bench/sharded.py [--rounds 12] [--ranks 1 2 4]

A transformer with FSDP2, in one run. Each round takes one step of each variant, in an order that is
shuffled alike on all ranks: the bare step, a second bare one (it shows the noise), SNCallback, and
the naive way: `full_tensor()` of each weight, then one power iteration of it on every rank. CPU
time is that of all ranks together; "over bare" is the median over rounds of (variant - bare), as %
of the bare median. Bytes are what one rank sends besides the bare step, counted from the
collectives that the step calls: an all-reduce of S bytes on p ranks sends 2 S (p - 1) / p, an
all-gather of S in all S (p - 1) / p, as rings do. SNCallback runs with a measurement of every layer
at every step and without certificates, and the naive way certifies nothing either.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from snc_client import SNCallback

WIDTH, DEPTH, HEADS, TOKENS, VOCABULARY = 768, 2, 12, 128, 256
RANKS = (1, 2, 4)
WARM_UP = 2
TARGET = 10.0  # times fewer bytes than the naive way, at 4 ranks


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm_1(x)
        q, k, v = (
            layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        up: Tensor = self.up(self.norm_2(x))
        return x + self.down(F.gelu(up))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.tokens(ids)))
        return logits


class Counted(TorchDispatchMode):
    """Counts the collectives that are called inside, their bytes, and all other operations."""

    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks = ranks
        self.calls, self.sent, self.operations = 0, 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = str(func)
        share = (self.ranks - 1) / self.ranks
        if "allreduce" in name or "all_reduce" in name:
            self.note(2 * share * _bytes(args[0]))
        elif "reduce_scatter" in name:
            self.note(share * max(_bytes(x) for x in args[:2]))
        elif "allgather" in name or "all_gather" in name:
            self.note(share * max(_bytes(x) for x in (args[0], args[1], result)))
        elif "c10d" not in name:
            self.operations += 1
        return result

    def note(self, sent: float) -> None:
        self.calls += 1
        self.sent += sent


def _bytes(given: object) -> int:
    if isinstance(given, Tensor):
        return given.numel() * given.itemsize
    return sum(map(_bytes, given)) if isinstance(given, list | tuple) else 0


@dataclass
class Variant:
    """A model of its own from one seed, its optimizer, and what happens after a step."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    after: Callable[[], object]
    seconds: list[float] = field(default_factory=list)
    own_seconds: list[float] = field(default_factory=list)

    def step(self, ids: Tensor) -> None:
        """Take one step and note its CPU time, and that of ``after`` alone."""
        start = time.process_time()
        loss = F.cross_entropy(self.model(ids).flatten(0, 1), ids.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        stepped = time.process_time()
        self.after()
        end = time.process_time()
        self.seconds.append(end - start)
        self.own_seconds.append(end - stepped)

    def counted(self, ids: Tensor, ranks: int) -> Counted:
        """Take one step and return what ``after`` called."""
        with Counted(ranks) as bare:
            after, self.after = self.after, _nothing
            self.step(ids)
        self.after = after
        with Counted(ranks) as found:
            self.after()
        assert bare.calls or ranks == 1
        return found


def variants() -> list[Variant]:
    """Return all variants; the same weights in each."""
    from torch.distributed.fsdp import fully_shard

    made = []
    for name in ("bare", "bare again", "SNCallback", "naive"):
        torch.manual_seed(0)
        model = Transformer()
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        after: Callable[[], object] = _nothing
        if name == "SNCallback":
            callback = SNCallback(
                model,
                threshold=1e3,
                action="observe",
                idle_every=1,
                certify_every=None,
                signals=("frobenius",),
            )
            after = callback.step
        elif name == "naive":
            after = Naive(model)
        made.append(Variant(name, model, optimizer, after))
    return made


def _nothing() -> None:
    return None


class Naive:
    """Gathers each weight whole on every rank, then makes one power iteration with one vector."""

    def __init__(self, model: nn.Module) -> None:
        self.weights = [p for p in model.parameters() if p.ndim == 2]
        self.vectors = [torch.randn(p.shape[1]) for p in self.weights]

    @torch.no_grad()
    def __call__(self) -> list[float]:
        sigmas = []
        for at, weight in enumerate(self.weights):
            whole: Tensor = weight.full_tensor()  # type: ignore[attr-defined]
            u = F.normalize(whole @ self.vectors[at], dim=0)
            x = whole.mT @ u
            sigmas.append(float(x.norm()))
            self.vectors[at] = F.normalize(x, dim=0)
        return sigmas


def rank(index: int, ranks: int, folder: str, rounds: int) -> None:
    """Run all variants on one rank; rank 0 writes the sums over all."""
    store = dist.FileStore(f"{folder}/{ranks}", ranks)
    dist.init_process_group("gloo", store=store, rank=index, world_size=ranks)
    torch.set_num_threads(1)
    found, order = variants(), random.Random(0)
    ids = torch.randint(VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(index))
    for _ in range(WARM_UP + rounds):
        for variant in order.sample(found, len(found)):
            variant.step(ids)
            dist.barrier()
    counts = [variant.counted(ids, ranks) for variant in found]
    taken = torch.tensor([[x.seconds, x.own_seconds] for x in found], dtype=torch.float64)
    dist.all_reduce(taken)
    if index == 0:
        report(ranks, found, taken[..., WARM_UP:], counts)
    dist.destroy_process_group()


def report(ranks: int, found: list[Variant], taken: Tensor, counts: list[Counted]) -> None:
    """Print a table; ``taken`` is [variant, whole step or after it, round]."""
    bare = taken[0, 0]
    median = float(bare.median())
    print(f"\n{ranks} ranks; bare step {median * 1e3:.0f} ms of CPU, all ranks together")
    print(
        "variant       over bare  (quartiles)      after the step  collectives  MB sent  operations"
    )
    for variant, (whole, after), counted in zip(found, taken, counts, strict=True):
        over = sorted(((whole - bare) / median * 100).tolist())
        low, middle, high = statistics.quantiles(over, n=4)
        print(
            f"{variant.name:12} {middle:9.1f} %  ({low:5.1f} to {high:5.1f})  "
            f"{float(after.median()) / median * 100:10.1f} %  {counted.calls:11}  "
            f"{counted.sent / 1e6:7.3f}  {counted.operations:10}"
        )
    layers = sum(p.ndim == 2 for p in found[0].model.parameters())
    by_name = {x.name: c for x, c in zip(found, counts, strict=True)}
    ours, naive = by_name["SNCallback"], by_name["naive"]
    print(f"{layers} weights, {ours.operations / layers:.0f} operations each")
    if ranks > 1:
        times = naive.sent / ours.sent
        print(f"the naive way sends {times:.1f} times the bytes")
        if ranks == RANKS[-1]:
            print(f"target {TARGET:g} at {ranks} ranks: {'met' if times >= TARGET else 'missed'}")


def main() -> None:
    """Run 1, 2 and 4 ranks one after the other."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--ranks", type=int, nargs="+", default=RANKS)
    arguments = parser.parse_args()
    rounds = arguments.rounds
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"width {WIDTH}, {DEPTH} blocks, {TOKENS} tokens a rank, {rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        for ranks in arguments.ranks:
            mp.spawn(rank, args=(ranks, folder, rounds), nprocs=ranks)


if __name__ == "__main__":
    main()
