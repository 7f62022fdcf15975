"""Four small trainings whose data is made here: text, a teacher, templates, values of a process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from faults import Fault
from torch import Tensor, nn

from snc_client.demo.text import VOCABULARY, encode, minibatches, standard_library_text

CONTEXT, WIDTH, HEADS = 32, 32, 2
CLASSES = 10


class Task:
    """A model and the loss of its next minibatch, as the seed says."""

    model: nn.Module
    moving = False  # whether the target of the loss moves with the model

    def loss(self, step: int, fault: Fault) -> Tensor:
        raise NotImplementedError

    def after(self, step: int) -> None:
        """Do what follows the optimizer's step."""


class Block(nn.Module):
    def __init__(self, norm: str, attention_scale: float) -> None:
        super().__init__()
        self.norm, self.scale = norm, attention_scale
        self.query, self.key, self.value, self.out = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        if norm != "none":
            self.norm_1, self.norm_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm == "pre":
            x = x + self.attend(self.norm_1(x))
            return x + self.feed(self.norm_2(x))
        if self.norm == "post":
            x = self.norm_1(x + self.attend(x))
            return self.norm_2(x + self.feed(x))
        x = x + self.attend(x)
        return x + self.feed(x)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Characters(nn.Module):
    def __init__(self, depth: int, norm: str, attention_scale: float, zero: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block(norm, attention_scale) for _ in range(depth)))
        self.norm = nn.Identity() if norm == "none" else nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02 if norm != "none" else 0.3)
        if zero:
            for block in self.blocks:
                nn.init.zeros_(block.out.weight)
                nn.init.zeros_(block.down.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.places.weight
        return self.head(self.norm(self.blocks(x)))


@lru_cache(maxsize=1)
def text() -> Tensor:
    return encode(standard_library_text(300_000))


class Transformer(Task):
    """The next character of Python source; 16 x 32 characters a step."""

    def __init__(self, seed: int, depth: int = 2, norm: str = "pre", scale: bool = True,
                 zero: bool = False) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.model = Characters(depth, norm, (WIDTH / HEADS) ** -0.5 if scale else 1.0, zero)
        self.data = minibatches(text(), batch_size=16, context=CONTEXT, seed=seed)
        self.noise = torch.Generator().manual_seed(1_000 + seed)

    def loss(self, step: int, fault: Fault) -> Tensor:
        inputs, targets = next(self.data)
        targets = fault.targets(step, targets, VOCABULARY, self.noise)
        logits = (
            self.model(inputs) if not fault.scales_inputs(step) else self._scaled(inputs, fault)
        )
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def _scaled(self, inputs: Tensor, fault: Fault) -> Tensor:
        model = self.model
        x = fault.size * (model.tokens(inputs) + model.places.weight)
        return model.head(model.norm(model.blocks(x)))


class Half(nn.Module):
    """Activations pass through float16: beyond 65504 they are infinite."""

    def forward(self, x: Tensor) -> Tensor:
        return x.half().float()


class Perceptron(Task):
    """Ten classes of a random teacher, 20 inputs, hidden layers of 48, 64 samples a step."""

    def __init__(self, seed: int, depth: int = 4, gain: float = 1.0, half: bool = False,
                 activation: Callable[[], nn.Module] = nn.ReLU, fixed: bool = False,
                 zero_head: bool = False) -> None:  # fmt: skip
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for at in range(depth):
            linear = nn.Linear(20 if at == 0 else 48, 48)
            nn.init.normal_(linear.weight, std=gain * (2 / linear.in_features) ** 0.5)
            layers += [linear, activation(), *([Half()] if half else [])]
        head = nn.Linear(48, CLASSES)
        if zero_head:
            nn.init.zeros_(head.weight)
        self.model = nn.Sequential(*layers, head)
        self.teacher = torch.randn(20, 64), torch.randn(64, CLASSES)
        self.data = torch.Generator().manual_seed(2_000 + seed)
        self.fixed = self.sample(256) if fixed else None

    def sample(self, num: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(num, 20, generator=self.data)
        return x, (torch.tanh(x @ self.teacher[0] / 4.5) @ self.teacher[1]).argmax(1)

    def loss(self, step: int, fault: Fault) -> Tensor:
        x, y = self.sample(64)
        if self.fixed is not None:
            pick = torch.randint(256, (64,), generator=self.data)
            x, y = self.fixed[0][pick], self.fixed[1][pick]
        y = fault.targets(step, y, CLASSES, self.data)
        return F.cross_entropy(self.model(fault.inputs(step, x)), y)


class Convolutions(Task):
    """Ten noisy 12 x 12 templates: three convolutions and two linear layers, 32 samples a step."""

    def __init__(self, seed: int, norm: bool = True, batch: int = 32) -> None:
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inside, outside in ((1, 8), (8, 16), (16, 16)):
            layers += [nn.Conv2d(inside, outside, 3, padding=1)]
            layers += [nn.BatchNorm2d(outside)] if norm else []
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        self.model = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, CLASSES)
        )
        self.templates, self.batch = torch.randn(CLASSES, 1, 12, 12), batch
        self.data = torch.Generator().manual_seed(3_000 + seed)

    def loss(self, step: int, fault: Fault) -> Tensor:
        y = torch.randint(CLASSES, (self.batch,), generator=self.data)
        x = self.templates[y] + 1.5 * torch.randn(self.batch, 1, 12, 12, generator=self.data)
        y = fault.targets(step, y, CLASSES, self.data)
        return F.cross_entropy(self.model(fault.inputs(step, x)), y)


class Values(Task):
    """Values of a linear process by TD(0), with a target network that follows every so often."""

    moving = True

    def __init__(self, seed: int, discount: float = 0.9, target_every: int = 20,
                 carry: float = 0.6) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1)
        )
        self.target, self.discount, self.every = copy.deepcopy(self.model), discount, target_every
        self.reward, self.carry = torch.randn(8) / 8**0.5, carry
        self.data = torch.Generator().manual_seed(4_000 + seed)

    def loss(self, step: int, fault: Fault) -> Tensor:
        now = torch.randn(64, 8, generator=self.data)
        after = self.carry * now + 0.1 * torch.randn(64, 8, generator=self.data)
        reward = fault.inputs(step, torch.tanh(2 * now @ self.reward))
        with torch.no_grad():
            ahead = self.target(fault.next_states(step, after)).squeeze(1)
        value = self.model(now).squeeze(1)
        return (value - reward - self.discount * ahead).square().mean()

    def after(self, step: int) -> None:
        if (step + 1) % self.every == 0:
            self.target.load_state_dict(self.model.state_dict())
