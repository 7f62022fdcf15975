"""A small transformer, sharded in every way that DTensor knows, and what a training does to it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from snc_client import SNCallback

VOCABULARY, WIDTH, HEADS = 29, 32, 4


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = [
            part(x).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        ]
        seen = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(seen)
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Sentences(logging.Handler):
    """Collects what the client says."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


class Transformer(nn.Module):
    """``gate`` has one row: most ranks hold nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.gate = nn.Linear(WIDTH, 1)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x * self.gate(x).sigmoid())


def whole() -> nn.Module:
    return Transformer()


def fully_sharded() -> nn.Module:
    return _fsdp(Transformer(), init_device_mesh("cpu", (dist.get_world_size(),)))


def replicated() -> nn.Module:
    names = ("replicas", "shards")
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=names)
    return _fsdp(Transformer(), mesh)


def stage() -> nn.Module:
    """Return one of two models, each over half of the ranks, as stages of a pipeline are."""
    names = ("stages", "shards")
    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=names)
    return _fsdp(Transformer(), mesh["shards"])


def tensor_parallel() -> nn.Module:
    return _tp(Transformer(), init_device_mesh("cpu", (dist.get_world_size(),)))


def on_two_dimensions() -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("dp", "tp"))
    return _fsdp(_tp(Transformer(), mesh["tp"]), mesh["dp"])


def _fsdp(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:  # type: ignore[union-attr]
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _tp(model: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    rows = {"q": ColwiseParallel(), "k": ColwiseParallel(), "v": ColwiseParallel()}
    plan = {**rows, "out": RowwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}
    for block in model.blocks:  # type: ignore[union-attr]
        parallelize_module(block, mesh, plan)
    return model


def gathered(parameter: Tensor) -> Tensor:
    full = getattr(parameter, "full_tensor", parameter.detach)
    found: Tensor = full()
    return found.detach()


def exact(model: nn.Module) -> dict[str, float]:
    """Return the spectral norm of every matrix, by a float64 SVD of the gathered weight."""
    return {
        name: float(torch.linalg.matrix_norm(gathered(p).double(), 2))
        for name, p in model.named_parameters()
        if p.ndim == 2
    }


def gradient_norm(model: nn.Module) -> float:
    """Return the norm of all gradients together, each gathered, in float64."""
    gradients = [gathered(p.grad).double() for p in model.parameters() if p.grad is not None]
    return float(torch.stack([torch.linalg.vector_norm(x) for x in gradients]).norm())


def batch(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randint(0, VOCABULARY, (8, 13), generator=generator)


def losses(model: nn.Module, step: int) -> Tensor:
    tokens = batch(step)
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def trained(
    make: Callable[[], nn.Module],
    steps: int = 20,
    *,
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 1e-3,
    at_step: Callable[[int], None] = lambda step: None,
    finish: Callable[[nn.Module, SNCallback], Mapping[str, Any]] = lambda model, callback: {},
    **keywords: Any,
) -> dict[str, Any]:
    """Train a model under a callback; return exact norms and the callback's readings, by step."""
    model = make()
    stepper = optimizer(model.parameters(), lr=lr)
    before: list[dict[str, float]] = []
    gradients: list[float] = []
    stepper.register_step_post_hook(lambda *_: before.append(exact(model)))
    stepper.register_step_post_hook(lambda *_: gradients.append(gradient_norm(model)))
    callback = SNCallback(model, optimizer=stepper, **keywords)
    after, readings = [], list[dict[str, dict[str, float | None]]]()
    totals: list[float | None] = []
    for step in range(1, steps + 1):
        loss = losses(model, step)
        stepper.zero_grad()
        loss.backward()
        at_step(step)
        stepper.step()
        after.append(exact(model))
        readings.append(_readings(callback))  # of the step before
        totals.append(callback.latest.scalars.get("grad_norm"))
    more = finish(model, callback)
    callback.close()
    return {
        "gradients": gradients,
        "totals": [*totals[1:], callback.latest.scalars.get("grad_norm")],
        "before": before,
        "after": after,
        "start": readings[0],
        "readings": [*readings[1:], _readings(callback)],
        "layers": [(x.name, x.shape, x.fan_out, x.fan_in) for x in callback.layers.layers],
        "skipped": {x.name: x.reason for x in callback.layers.skipped},
        "errors": callback.errors,
        **more,
    }


def _readings(callback: SNCallback) -> dict[str, dict[str, float | None]]:
    names = ("sigma", "sigma_upper", "threshold", "scale", "frobenius", "grad_norm", "update_norm")
    return {
        layer: {name: reading.get(name) for name in names}
        for layer, reading in callback.latest.items()
    }
