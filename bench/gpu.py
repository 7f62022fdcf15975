"""What measuring sigma costs and finds on a CUDA device. No log yet: it has not been run on a GPU.

    PYTHONPATH=client:. python bench/gpu.py [--layers gpt2 1.3b] [--steps 50]

Needs torch (with CUDA) and numpy, nothing else; without a CUDA device it says so and exits with
status 1. Per layer set, interleaved in one run: SNCallback and the estimator alone, one by one and
as a graph, beside a naive loop with .item() and torch's spectral_norm parametrization. Times are
CUDA events around the work, and the host's clock up to the last launch. "% of a step" is the
device's time over that of a bf16 forward and backward pass of 8192 tokens through the same
matrices: no attention, no norms, no optimizer, so a real step is longer and the share smaller.
Measured steps of ours run under torch.cuda.set_sync_debug_mode("error"). Before the timings it
checks the CUDA paths against float64; a failed check is printed, and the exit status is 2.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from snc_client import SNCallback
from snc_client.certificate import certify, sigma_upper
from snc_client.estimator import BlockPower
from snc_client.estimator.graph import ASKED as GRAPH
from snc_client.estimator.graph import GraphPower
from snc_client.estimator.solvers import ASKED as TRITON
from snc_client.estimator.solvers import PLAIN, agrees, solvers
from snc_client.operators import Matrix

TOKENS = 8192
WARM_UP = 40  # calls: past the estimator's own 32, in which it iterates four times
Shape = tuple[int, int]


def gpt2() -> list[Shape]:
    return [(2304, 768), (768, 768), (3072, 768), (768, 3072)] * 12 + [(50257, 768), (1024, 768)]


def gpt_1b3() -> list[Shape]:
    return [(6144, 2048), (2048, 2048), (8192, 2048), (2048, 8192)] * 24 + [(50257, 2048)]


LAYER_SETS: dict[str, Callable[[], list[Shape]]] = {"gpt2": gpt2, "1.3b": gpt_1b3}


@dataclass
class Timing:
    """One variant: device and host milliseconds a call, launches and graphs a call, peak memory."""

    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    launches: int = 0
    graphs: int = 0
    peak: float = 0.0  # MiB above what was allocated before


@contextmanager
def no_waiting() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Matrices(nn.Module):
    """Linear layers of given shapes, each fed by itself: the products of a step, in any order."""

    def __init__(self, shapes: list[Shape], dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(n, m, bias=False, device="cuda", dtype=dtype) for m, n in shapes
        )

    def forward_and_backward(self) -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            for layer in self.layers:
                x = torch.ones(TOKENS, layer.in_features, device="cuda", dtype=torch.bfloat16)
                layer(x.requires_grad_()).sum().backward()


def timed(call: Callable[[], object], into: Timing) -> None:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start = time.perf_counter()
    begin.record()
    call()
    end.record()
    into.host.append(1e3 * (time.perf_counter() - start))
    torch.cuda.synchronize()
    into.device.append(begin.elapsed_time(end))


def profiled(call: Callable[[], object], into: Timing) -> None:
    """Count what the host launches in one call, and what it allocates at most."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events()]
    into.launches = sum("LaunchKernel" in name for name in names)
    into.graphs = sum("GraphLaunch" in name for name in names)
    into.peak = (torch.cuda.max_memory_allocated() - before) / 2**20


def strictly(call: Callable[[], object]) -> Callable[[], object]:
    """Let all calls but the first two, which allocate and record, fail where the host waits."""
    calls = 0

    def without_a_wait() -> None:
        nonlocal calls
        calls += 1
        if calls <= 2:
            call()
            return
        with no_waiting():
            call()

    return without_a_wait


def naive_loop(weights: list[Tensor]) -> Callable[[], object]:
    """One warm vector and one .item() a matrix: what people write first."""
    vectors = [torch.randn(w.shape[1], device="cuda") for w in weights]

    @torch.no_grad()
    def call() -> None:
        for i, w in enumerate(weights):
            u = nn.functional.normalize(w @ vectors[i], dim=0)
            v = w.mT @ u
            v.norm().item()
            vectors[i] = nn.functional.normalize(v, dim=0)

    return call


def parametrization(shapes: list[Shape]) -> Callable[[], object]:
    """Compute every weight of a model under torch's spectral_norm once, as a forward pass does."""
    model = Matrices(shapes, torch.float32)
    for layer in model.layers:
        nn.utils.parametrizations.spectral_norm(layer)
    model.train()

    @torch.no_grad()
    def call() -> None:
        for layer in model.layers:
            _ = layer.weight

    return call


def variants(shapes: list[Shape]) -> dict[str, Callable[[], object]]:
    model = Matrices(shapes, torch.float32)
    weights = [layer.weight.detach() for layer in model.layers]
    operators = [Matrix(w) for w in weights]
    found: dict[str, Callable[[], object]] = {
        "naive loop with .item(), 1 vector": naive_loop(weights),
        "torch parametrizations.spectral_norm": parametrization(shapes),
    }
    for b in (8, 16):
        for kind in (BlockPower, GraphPower):
            power = kind(shapes, device=torch.device("cuda"), block=b)
            found[f"{kind.__name__}, b={b}"] = strictly(lambda p=power: p.step_(operators))
    for name, keywords in (
        ("SNCallback, observe", {}),
        ("SNCallback, rescale at 1.1x init", {"threshold": "1.1x init"}),
        ("SNCallback, observe, never certified", {"certify_every": None}),
    ):
        found[name] = strictly(checked_step(SNCallback(model, **keywords)))
    return found


def checked_step(callback: SNCallback) -> Callable[[], object]:
    """Return a step that lets through what the callback keeps from a training."""

    def step() -> None:
        callback.step()
        if callback.errors:
            raise RuntimeError("a step was not measured: its traceback is in the log")

    return step


def measure(name: str, steps: int) -> None:
    shapes = LAYER_SETS[name]()
    size = sum(m * n for m, n in shapes) / 1e6
    print(f"\n{name}: {len(shapes)} matrices, {size:.0f} M parameters, float32 weights")
    step, model = Timing(), Matrices(shapes[:-1], torch.float32)
    for i in range(8):
        timed(model.forward_and_backward, step if i >= 3 else Timing())
        model.zero_grad()
    bare = statistics.median(step.device)
    del model
    torch.cuda.empty_cache()
    print(f"forward and backward of {TOKENS} tokens in bf16, products only: {bare:.2f} ms")
    print(f"{'variant':38}{'device ms':>11}{'host ms':>9}{'% of step':>11}{'launches':>10}", end="")
    print(f"{'graphs':>8}{'MiB':>8}")
    timings = timings_of(variants(shapes), steps)
    for what, t in timings.items():
        device, host = statistics.median(t.device), statistics.median(t.host)
        print(f"{what:38}{device:11.3f}{host:9.3f}{100 * device / bare:11.2f}", end="")
        print(f"{t.launches:10d}{t.graphs:8d}{t.peak:8.1f}")


def timings_of(calls: dict[str, Callable[[], object]], steps: int) -> dict[str, Timing]:
    timings = {what: Timing() for what in calls}
    for what, call in list(calls.items()):
        try:
            for _ in range(WARM_UP):
                call()
                torch.cuda.synchronize()
            profiled(call, timings[what])
        except RuntimeError as error:
            print(f"{what}: {str(error).splitlines()[0]}")
            del calls[what], timings[what]
    for _ in range(steps):  # interleaved: whatever slows the device slows all of them
        for what, call in calls.items():
            timed(call, timings[what])
    return timings


def checks() -> list[str]:
    """Return the names of the checks that failed; print all of them."""
    failed = []
    for check in (solvers_agree, sigma_is_right, graph_is_the_plain_way, certificates_hold):
        try:
            said, passed = check()
        except Exception as error:  # the others are still worth running
            said, passed = f"{type(error).__name__}: {str(error).splitlines()[0]}", False
        print(f"{'ok' if passed else 'FAILED':7}{check.__name__.replace('_', ' ')}: {said}")
        failed += [] if passed else [check.__name__]
    return failed


def solvers_agree() -> tuple[str, bool]:
    device = torch.device("cuda")
    plain, chosen = agrees(PLAIN, device), solvers(torch.zeros((), device=device).device)
    kernels = "Triton kernels pass" if chosen.one_launch else "no Triton kernels: see the warning"
    return f"plain Jacobi {'passes' if plain else 'fails'}, {kernels}", plain and chosen.one_launch


def exact(w: Tensor) -> Tensor:
    """Return the spectral norm by float64 SVD on the device; a Gram matrix would lose digits."""
    return torch.linalg.svdvals(w.double())[0]


def sigma_is_right() -> tuple[str, bool]:
    torch.manual_seed(0)
    shapes = [(2304, 768), (768, 768), (768, 3072), (5, 9), (1, 300)]
    weights = [torch.randn(shape, device="cuda") for shape in shapes]
    weights.append(weights[1].bfloat16())
    blocks = BlockPower([*shapes, shapes[1]], device=torch.device("cuda"))
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # TF32 is what a job allows for itself
    for _ in range(60):
        sigma = blocks.step_([Matrix(w) for w in weights]).sigma
    torch.set_float32_matmul_precision(allowed)
    error = 1 - sigma.double() / torch.stack([exact(w) for w in weights])
    low, high = float(error.min()), float(error.max())
    return f"1 - sigma / true in [{low:.1e}, {high:.1e}]", -2e-6 <= low and high <= 5e-4


def graph_is_the_plain_way() -> tuple[str, bool]:
    torch.manual_seed(1)
    shapes = [(300, 200), (200, 300), (96, 64), (5, 9)]
    device = torch.device("cuda")
    weights = [torch.randn(shape, device=device) for shape in shapes]
    plain, graph = (kind(shapes, device=device) for kind in (BlockPower, GraphPower))
    worst = 0.0
    for step in range(50):
        for w in weights:
            w.add_(torch.randn_like(w), alpha=0.01)
        if step == 45:  # another address
            weights[1] = weights[1].clone()
        a, b = (p.step_([Matrix(w) for w in weights]).sigma for p in (plain, graph))
        worst = max(worst, float(((a - b) / a).abs().max()))
    said = f"largest difference {worst:.1e} over 50 steps, recorded {graph.recordings} times"
    return said, worst <= 1e-4 and graph.recordings == 2


def certificates_hold() -> tuple[str, bool]:
    torch.manual_seed(2)
    unsound = loose = 0
    for k in range(200):
        w = torch.randn(40 + k, 30 + k % 50, device="cuda") * 10.0 ** (k % 9 - 4)
        true = exact(w)
        upper = sigma_upper(w, true.float() * (1 - 1e-4)).double()
        unsound += bool(upper < true) + bool(certify(w, float(true) * (1 - 1e-5)))
        loose += bool(upper > true * 1.011)
    # CUDA's Cholesky reports info = 0 for NaN: the bound must be infinite, and nothing certified.
    poisoned = torch.full((64, 64), torch.nan, device="cuda")
    upper = sigma_upper(poisoned, torch.ones((), device="cuda"))
    info = torch.linalg.cholesky_ex(poisoned.double()).info
    guarded = bool(upper.isinf()) and not certify(poisoned, 1e30)
    said = f"unsound {unsound} of 400, loose {loose} of 200; NaN: info = {int(info)}, bound {upper}"
    return said, unsound == loose == 0 and guarded


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", nargs="*", choices=LAYER_SETS, default=["gpt2", "1.3b"])
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"bench/gpu.py needs a CUDA device, and torch {torch.__version__} sees none here.")
        return 1
    for asked in (TRITON, GRAPH):  # both are opt-in as long as there is no log
        os.environ[asked] = "1"
    torch.cuda.init()
    properties = torch.cuda.get_device_properties(0)
    print(f"python bench/gpu.py {' '.join(sys.argv[1:])}".rstrip())
    print(f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, torch ", end="")
    print(f"{torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}")
    failed = checks()
    for name in given.layers:
        try:
            measure(name, given.steps)
        except torch.cuda.OutOfMemoryError:
            print(f"{name}: does not fit into this device's memory")
        torch.cuda.empty_cache()
    return 2 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
