"""A classifier of digits whose answers are certified: no small change of an image changes them.

Needs scikit-learn for the digits, and plotly for the picture, robust.html: pip install
'.[plots]' scikit-learn. Start the service with `snc serve`, set SNC_URL=http://127.0.0.1:8470, and
run this file. `--short` takes a few seconds.
"""

import argparse
import os

import plotly.graph_objects as go
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from snc_client import SNCallback, lipschitz_bound

SHARPNESS = 4.0  # of the loss: lower gives larger margins and fewer right answers
TRAINED = 1_297  # images; the other 500 are for testing
# `cap` clips only the singular values above the threshold: the bound of the network is at most 1,
# and the layers keep most of what they have learned. `strict` proves it at every step.
HELD = {"threshold": 1.0, "action": "cap", "strict": True}


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    order = torch.randperm(len(found.images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(found.data / 16, dtype=torch.float32)[order], torch.tensor(found.target)[
        order
    ]


def train(
    images: Tensor, labels: Tensor, steps: int, name: str, **hold: object
) -> tuple[nn.Module, str | None]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with SNCallback(model, optimizer=optimizer, name=name, **hold) as callback:
        for _ in range(steps):
            chosen = torch.randint(len(images), (100,))
            loss = F.cross_entropy(SHARPNESS * model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callback.step(loss=loss)
        return model.eval(), callback.run


def certified(model: nn.Module, images: Tensor, labels: Tensor, radii: Tensor) -> Tensor:
    """Return the share of images that are right and stay right within each radius (L2)."""
    with torch.no_grad():
        logits = model(images)
    radius = lipschitz_bound(model, images[:1]).certified_radius(logits)
    right = logits.argmax(1) == labels
    return torch.stack([(right & (radius >= r)).double().mean() for r in radii])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds")
    steps = 60 if parser.parse_args().short else 2000
    images, labels = digits()
    radii = torch.linspace(0, 1, 41, dtype=torch.float64)
    figure = go.Figure()
    runs = []
    for name, hold in (("digits, free", {}), ("digits, held", HELD)):
        model, run = train(images[:TRAINED], labels[:TRAINED], steps, name, **hold)
        shares = certified(model, images[TRAINED:], labels[TRAINED:], radii)
        print(f"{name}: accuracy {shares[0]:.2f}, certified at 0.25: {shares[10]:.2f}")
        figure.add_scatter(x=radii, y=shares, name=name)
        runs.append(run)
    figure.update_layout(xaxis_title="radius (L2)", yaxis_title="certified accuracy")
    figure.write_html("robust.html")
    print("picture: robust.html")
    if url := os.environ.get("SNC_URL"):
        print(f"runs: {url}/#/compare/{'/'.join(map(str, runs))}")


if __name__ == "__main__":
    main()
