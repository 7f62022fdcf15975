"""On paper: what measuring sharded weights costs a step on 8 and 512 H100, by sizes alone.

    python bench/sharded_projection.py

Nothing is run. FSDP2 over all GPUs (rows cut), every layer measured at every step, blocks of 16
vectors, no certificate at that step. The docs quote the table; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

# Assumptions about the machine: an H100 SXM, 8 in a node, one 400 Gb/s adapter for each GPU.
GPU_FLOPS = 989e12  # dense bfloat16, NVIDIA's data sheet
UTILISATION = 0.40  # of a good training
FLOAT32_FLOPS = 67e12 * 0.5  # no TF32: full precision, half of the data sheet
MEMORY_BYTES = 3.35e12 * 0.7  # a second, read
BUS_BYTES = {8: 400e9, 512: 300e9}  # a second, of an all-reduce or all-gather of many megabytes
LATENCY = {8: 30e-6, 512: 150e-6}  # of one collective
KERNEL = 4e-6  # to launch and run one small kernel, whatever its size
KERNELS_A_LAYER = 81  # operations of torch, counted by bench/sharded.py on CPU
BLOCK = 16
RECORD = 20 + BLOCK * BLOCK  # numbers of a layer beside the BLOCK x columns of W'U


@dataclass(frozen=True)
class Model:
    """Weights (rows, columns, how many), and the tokens of a step."""

    name: str
    weights: tuple[tuple[int, int, int], ...]
    tokens: int

    @property
    def parameters(self) -> int:
        """Return the number of entries of all weights."""
        return sum(m * n * count for m, n, count in self.weights)

    @property
    def layers(self) -> int:
        """Return the number of weights."""
        return sum(count for _, _, count in self.weights)

    @property
    def columns(self) -> int:
        """Return the length of one vector of each weight, added up."""
        return sum(n * count for _, n, count in self.weights)


MODELS = (
    Model(
        "GPT-2 small",
        ((768, 768, 48), (3072, 768, 12), (768, 3072, 12), (50257, 768, 1), (1024, 768, 1)),
        1 << 19,
    ),
    Model(
        "7B",
        ((4096, 4096, 128), (11008, 4096, 64), (4096, 11008, 32), (32000, 4096, 2)),
        1 << 22,
    ),
    Model(
        "70B",
        (
            (8192, 8192, 160),
            (1024, 8192, 160),
            (28672, 8192, 160),
            (8192, 28672, 80),
            (32000, 8192, 2),
        ),
        1 << 22,
    ),
)


@dataclass(frozen=True)
class Cost:
    """One measurement on ``gpus``: bytes that each GPU sends, and seconds."""

    model: Model
    gpus: int

    @property
    def step(self) -> float:
        """Return the seconds of a bare step: 6 operations a parameter and token."""
        work = 6 * self.model.parameters * self.model.tokens
        return work / (self.gpus * GPU_FLOPS * UTILISATION)

    @property
    def sent(self) -> float:
        """Return the bytes that each GPU sends: a ring all-reduce sends nearly all of it twice."""
        numbers = BLOCK * self.model.columns + RECORD * self.model.layers
        return 4 * numbers * 2 * (self.gpus - 1) / self.gpus

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Return those of the sum, of the products, and of small kernels; nothing overlapped."""
        own = self.model.parameters / self.gpus
        products = max(4 * BLOCK * own / FLOAT32_FLOPS, 8 * own / MEMORY_BYTES)
        sums = self.sent / BUS_BYTES[self.gpus] + LATENCY[self.gpus]
        return sums, products, KERNELS_A_LAYER * KERNEL * self.model.layers

    @property
    def naive_sent(self) -> float:
        """Return the bytes of an all-gather of every weight in float32."""
        return 4 * self.model.parameters * (self.gpus - 1) / self.gpus

    @property
    def naive_seconds(self) -> float:
        """Return the seconds of that, and of one power iteration (two reads) of the whole."""
        gather = self.naive_sent / BUS_BYTES[self.gpus] + LATENCY[self.gpus] * self.model.layers
        return gather + 8 * self.model.parameters / MEMORY_BYTES


def table() -> list[str]:
    """Return the rows of the table in the docs."""
    rows = [
        "| model, GPUs | bare step | sent by each GPU | sum | products | small kernels | share of "
        "the step | naive: sent | naive: share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for model in MODELS:
        for gpus in (8, 512):
            cost = Cost(model, gpus)
            sums, products, kernels = cost.seconds
            rows.append(
                f"| {model.name}, {gpus} | {_time(cost.step)} | {_bytes(cost.sent)} | "
                f"{_time(sums)} | {_time(products)} | {_time(kernels)} | "
                f"{_share((sums + products + kernels) / cost.step)} | "
                f"{_bytes(cost.naive_sent)} | {_share(cost.naive_seconds / cost.step)} |"
            )
    return rows


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} us" if seconds < 0.1 else f"{seconds:,.2f} s"


def _bytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"


def _share(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 1 else f"{share:.1f} times the step"


if __name__ == "__main__":
    print("\n".join(table()))
