"""A generative adversarial network on eight Gaussians, trained twice: the critic held, and not.

Start the service with `snc serve`, set SNC_URL=http://127.0.0.1:8470, and run this file.
`--short` takes a few seconds. The picture, gan.html, needs plotly: pip install '.[plots]'.
"""

import argparse
import math
import os
from itertools import pairwise

import torch
import torch.nn.functional as F
from plotly.subplots import make_subplots
from torch import Tensor, nn

from snc_client import SNCallback

LATENT, BATCH, SPREAD = 16, 128, 0.05
ANGLES = 2 * math.pi * torch.arange(8) / 8
CENTRES = torch.stack((ANGLES.cos(), ANGLES.sin()), 1)
# Holds every layer of the critic; the generator has no threshold and is measured.
HELD = {"threshold": {"critic.*": 3.0}, "action": "cap"}


def perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def real() -> Tensor:
    return CENTRES[torch.randint(8, (BATCH,))] + SPREAD * torch.randn(BATCH, 2)


def train(steps: int, name: str, **hold: object) -> tuple[Tensor, list[float], str | None]:
    """Return samples of the generator, the critic's largest sigma by step, and the run's id."""
    torch.manual_seed(0)
    generator, critic = perceptron(LATENT, 128, 128, 2), perceptron(2, 128, 128, 1)
    of_generator = torch.optim.Adam(generator.parameters(), 2e-3, betas=(0.5, 0.9))
    of_critic = torch.optim.Adam(critic.parameters(), 2e-3, betas=(0.5, 0.9))
    models = {"generator": generator, "critic": critic}
    sigma = []
    # The first optimizer counts the steps; each layer is held after the step of its own optimizer.
    with SNCallback(models, optimizer=[of_critic, of_generator], name=name, **hold) as callback:
        for _ in range(steps):
            made = generator(torch.randn(BATCH, LATENT))
            loss = F.softplus(-critic(real())).mean() + F.softplus(critic(made.detach())).mean()
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
            of_generator.zero_grad()
            F.softplus(-critic(made)).mean().backward()
            of_generator.step()
            callback.step(loss=loss)
            values = callback.latest
            sigma.append(max(v["sigma"] for k, v in values.items() if k.startswith("critic")))
        run = callback.run
    with torch.no_grad():
        return generator(torch.randn(1000, LATENT)), sigma, run


def modes(samples: Tensor) -> int:
    """Return how many of the eight Gaussians have at least a tenth of their share of samples."""
    distance, nearest = torch.cdist(samples, CENTRES).min(1)
    counts = torch.bincount(nearest[distance < 3 * SPREAD], minlength=8)
    return int((counts >= len(samples) / 80).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds")
    steps = 80 if parser.parse_args().short else 2000
    titles = ("samples", "largest sigma of the critic")
    figure = make_subplots(1, 2, subplot_titles=titles)
    runs = []
    for ink, name, hold in (("gray", "gan, critic free", {}), ("blue", "gan, critic held", HELD)):
        samples, sigma, run = train(steps, name, **hold)
        print(f"{name}: {modes(samples)} of 8 modes, largest sigma at the end {sigma[-1]:.2f}")
        figure.add_scatter(x=samples[:, 0], y=samples[:, 1], mode="markers", name=name,
                           marker_size=3, marker_color=ink, legendgroup=name,
                           row=1, col=1)  # fmt: skip
        figure.add_scatter(y=sigma, line_color=ink, legendgroup=name, showlegend=False,
                           row=1, col=2)  # fmt: skip
        runs.append(run)
    figure.write_html("gan.html")
    print("picture: gan.html")
    if url := os.environ.get("SNC_URL"):
        print(f"runs: {url}/#/compare/{'/'.join(map(str, runs))}")


if __name__ == "__main__":
    main()
