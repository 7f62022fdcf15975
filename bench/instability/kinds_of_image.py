"""Trainings on vectors and small images: residual, denoising, contrastive, codes, GAN, tables."""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F
from faults import Fault
from tasks import CLASSES, Task
from torch import Tensor, nn
from torch.func import functional_call

SIDE = 8


def perceptron(*sizes: int, activation: type[nn.Module] = nn.ReLU, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for inside, outside in itertools.pairwise(sizes):
        layers += [nn.Linear(inside, outside), *([nn.LayerNorm(outside)] if norm else [])]
        layers += [activation()]
    return nn.Sequential(*layers[: -2 if norm else -1])


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class Templates(Task):
    """Noisy pictures of ten templates; ``batch`` a step, three times that from ``change`` on."""

    def __init__(self, seed: int, batch: int = 32, noise: float = 1.0, change: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = self.build()
        self.templates = torch.randn(CLASSES, SIDE * SIDE)
        self.batch, self.noise, self.change = batch, noise, change
        self.data = torch.Generator().manual_seed(5_000 + seed)

    def build(self) -> nn.Module:
        raise NotImplementedError

    def sample(self, step: int, fault: Fault) -> tuple[Tensor, Tensor]:
        num = 3 * self.batch if 0 < self.change <= step else self.batch
        y = torch.randint(CLASSES, (num,), generator=self.data)
        x = self.templates[y] + self.noise * torch.randn(num, SIDE * SIDE, generator=self.data)
        return fault.inputs(step, x), fault.targets(step, y, CLASSES, self.data)


class ResidualNet(Templates):
    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.Unflatten(1, (1, SIDE, SIDE)), nn.Conv2d(1, 12, 3, padding=1),
            *(Residual(12) for _ in range(3)), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(48, CLASSES),
        )  # fmt: skip

    def loss(self, step: int, fault: Fault) -> Tensor:
        x, y = self.sample(step, fault)
        return F.cross_entropy(fault.logits(step, self.model(x)), y)


class Denoising(Templates):
    """Diffusion: the noise in a mixture of it and a picture, given how much there is."""

    def build(self) -> nn.Module:
        return perceptron(SIDE * SIDE + 1, 96, 96, SIDE * SIDE, activation=nn.SiLU, norm=True)

    def loss(self, step: int, fault: Fault) -> Tensor:
        x, _ = self.sample(step, fault)
        share = torch.rand(len(x), 1, generator=self.data)
        noise = torch.randn(x.shape, generator=self.data)
        mixed = (1 - share).sqrt() * x + share.sqrt() * noise
        return F.mse_loss(self.model(torch.cat((mixed, share), 1)), noise)


class TwoViews(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron(SIDE * SIDE, 64, 64, 16, norm=True)
        self.log_scale = nn.Parameter(torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.body(x), dim=1)


class Contrastive(Templates):
    """Two noisy views of a picture must find each other in the batch; the scale is learned."""

    def build(self) -> nn.Module:
        return TwoViews()

    def loss(self, step: int, fault: Fault) -> Tensor:
        x, _ = self.sample(step, fault)
        first, second = (
            self.model(x + 0.5 * torch.randn(x.shape, generator=self.data)) for _ in range(2)
        )
        logits = fault.logits(step, self.model.log_scale.exp() * first @ second.T)
        aim = fault.targets(step, torch.arange(len(x)), len(x), self.data)
        return 0.5 * (F.cross_entropy(logits, aim) + F.cross_entropy(logits.T, aim))


class Coder(nn.Module):
    def __init__(self, code: int, wide: int) -> None:
        super().__init__()
        self.encoder = perceptron(SIDE * SIDE, 64, 48, wide)
        self.decoder = perceptron(code, 48, 64, SIDE * SIDE)


class Autoencoder(Templates):
    def build(self) -> nn.Module:
        return Coder(8, 8)

    def loss(self, step: int, fault: Fault) -> Tensor:
        x, _ = self.sample(step, fault)
        return F.mse_loss(self.model.decoder(fault.logits(step, self.model.encoder(x))), x)


class Variational(Templates):
    def build(self) -> nn.Module:
        return Coder(8, 16)

    def loss(self, step: int, fault: Fault) -> Tensor:
        x, _ = self.sample(step, fault)
        mean, log_var = self.model.encoder(x).chunk(2, 1)
        code = mean + (0.5 * log_var).exp() * torch.randn(mean.shape, generator=self.data)
        apart = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1).mean()
        return F.mse_loss(self.model.decoder(fault.logits(step, code)), x) + 0.01 * apart


class MeanTeacher(Templates):
    """Few labels; the rest agrees with a slow average of the model."""

    def build(self) -> nn.Module:
        model = perceptron(SIDE * SIDE, 64, 64, CLASSES, norm=True)
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        return model

    def loss(self, step: int, fault: Fault) -> Tensor:
        x, y = self.sample(step, fault)
        other = self.model(x + 0.3 * torch.randn(x.shape, generator=self.data))
        agree = F.mse_loss(other.softmax(1), self.teacher(x).softmax(1))
        return F.cross_entropy(fault.logits(step, other[:8]), y[:8]) + 2 * agree

    @torch.no_grad()
    def after(self, step: int) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 0.05)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = perceptron(8, 48, 48, 2)
        self.critic = perceptron(2, 48, 48, 1)


class Adversarial(Task):
    """Eight Gaussians on a ring: both nets step together, on the sum of their losses."""

    moving = True

    def __init__(self, seed: int, penalty: float = 0.3, lead: float = 1.0) -> None:
        torch.manual_seed(seed)
        self.model, self.penalty, self.lead = Pair(), penalty, lead
        self.data = torch.Generator().manual_seed(6_000 + seed)

    def loss(self, step: int, fault: Fault) -> Tensor:
        angle = torch.randint(8, (64,), generator=self.data) * torch.pi / 4
        real = 2 * torch.stack((angle.cos(), angle.sin()), 1)
        real = real + 0.1 * torch.randn(64, 2, generator=self.data)
        real = fault.inputs(step, real).requires_grad_()
        made = self.model.generator(torch.randn(64, 8, generator=self.data))
        held = {name: p.detach() for name, p in self.model.critic.named_parameters()}
        judged = self.model.critic(real)
        loss = F.softplus(-judged).mean() + F.softplus(self.model.critic(made.detach())).mean()
        if self.penalty:
            (slope,) = torch.autograd.grad(judged.sum(), real, create_graph=True)
            loss = loss + self.penalty * slope.square().sum(1).mean()
        fooled = F.softplus(-functional_call(self.model.critic, held, (made,))).mean()
        return loss + fault.logits(step, self.lead * fooled)


class Table(Task):
    """Regression on ten numbers and two categories; Huber loss."""

    def __init__(self, seed: int, batch: int = 64, dropout: float = 0.0, change: int = 0) -> None:
        torch.manual_seed(seed)
        self.model = nn.ModuleDict(
            {"kinds": nn.Embedding(40, 6), "body": perceptron(22, 48, 48, 1)}
        )
        self.teacher, self.effect = torch.randn(10, 4), torch.randn(40)
        self.batch, self.dropout, self.change = batch, dropout, change
        self.data = torch.Generator().manual_seed(7_000 + seed)

    def loss(self, step: int, fault: Fault) -> Tensor:
        x = torch.randn(self.batch, 10, generator=self.data)
        kinds = torch.randint(40, (self.batch, 2), generator=self.data)
        y = torch.tanh(x @ self.teacher / 3).sum(1) + 0.5 * self.effect[kinds].sum(1)
        y = fault.values(step, y + 0.1 * torch.randn(self.batch, generator=self.data), self.data)
        x = torch.cat((fault.inputs(step, x), self.model["kinds"](kinds).flatten(1)), 1)
        if self.change and step >= self.change:
            x = F.dropout(x, self.dropout)
        return F.huber_loss(fault.logits(step, self.model["body"](x)).squeeze(1), y)


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.policy, self.critic = (
            perceptron(4, 32, 32, out, activation=nn.Tanh) for out in (3, 1)
        )


class ActorCritic(Task):
    """Drive 32 carts to the middle of a line: advantage actor-critic, 8 steps an update."""

    moving = True

    def __init__(self, seed: int, discount: float = 0.95, value: float = 0.5) -> None:
        torch.manual_seed(seed)
        self.model, self.discount, self.value = Actor(), discount, value
        self.data = torch.Generator().manual_seed(8_000 + seed)
        self.state = torch.randn(32, 4, generator=self.data)

    def loss(self, step: int, fault: Fault) -> Tensor:
        logs, values, rewards, entropy = [], [], [], []
        for _ in range(8):
            chances = self.model.policy(self.state).log_softmax(1)
            action = torch.multinomial(chances.detach().exp(), 1, generator=self.data)
            logs.append(chances.gather(1, action).squeeze(1))
            values.append(self.model.critic(self.state).squeeze(1))
            entropy.append(-(chances.exp() * chances).sum(1).mean())
            self.state = self.move(action.squeeze(1))
            rewards.append(fault.inputs(step, -self.state[:, 0].abs()))
        with torch.no_grad():
            ahead = self.model.critic(fault.next_states(step, self.state)).squeeze(1)
        total: Tensor = torch.zeros(())
        for log, value, reward in zip(logs[::-1], values[::-1], rewards[::-1], strict=True):
            ahead = reward + self.discount * ahead
            gain = ahead - value
            total = total + self.value * gain.square().mean() - (log * gain.detach()).mean()
        return (total / 8) - 0.01 * torch.stack(entropy).mean()

    def move(self, action: Tensor) -> Tensor:
        place, speed, wind, phase = self.state.unbind(1)
        speed = 0.9 * speed + 0.1 * (action - 1) + 0.02 * wind
        state = torch.stack(((place + speed).clamp(-3, 3), speed, wind, phase), 1)
        anew = torch.rand(len(state), generator=self.data) < 0.02
        return torch.where(anew[:, None], torch.randn(state.shape, generator=self.data), state)
