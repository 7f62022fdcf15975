"""Value learning off policy that diverges, and the same with a held critic: Baird's star.

All true values are 0. Start the service with `snc serve`, set SNC_URL=http://127.0.0.1:8470, and
run this file. `--short` takes a few seconds. The picture, rl.html, needs plotly:
pip install '.[plots]'.
"""

import argparse
import math
import os

import plotly.graph_objects as go
import torch
from torch import Tensor, nn

from snc_client import SNCallback

GAMMA, LR = 0.99, 0.03
# Times the sigma of each layer before the training: enough to learn, too little to run away.
HELD = {"threshold": "2x init"}


def features() -> Tensor:
    """Return the features of Baird (1995), [7 states, 8]."""
    found = torch.zeros(7, 8)
    found[:6, :6] = 2 * torch.eye(6)
    found[:6, 7], found[6, 6], found[6, 7] = 1.0, 1.0, 2.0
    return found


def train(steps: int, name: str, **hold: object) -> tuple[list[float], str | None]:
    """Return the largest absolute value by step, until it is no number, and the run's id."""
    torch.manual_seed(0)
    states = features()
    critic = nn.Sequential(
        nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.SGD(critic.parameters(), LR)
    largest: list[float] = []
    with SNCallback({"critic": critic}, optimizer=optimizer, name=name, **hold) as callback:
        for _ in range(steps):
            seen = torch.randint(7, (32,))
            # The behaviour goes to the seventh state once in seven times, the target always.
            taken = torch.rand(32) < 1 / 7
            with torch.no_grad():
                aim = GAMMA * critic(states[6])
            loss = (7 * taken * (aim - critic(states[seen])[:, 0]).square()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                largest.append(float(critic(states).abs().max()))
            callback.step(loss=loss, largest_value=largest[-1])
            if not math.isfinite(largest[-1]):
                break
        return largest, callback.run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds")
    steps = 300 if parser.parse_args().short else 5000
    figure = go.Figure()
    runs = []
    for name, hold in (("critic free", {}), ("critic held", HELD)):
        largest, run = train(steps, name, **hold)
        print(f"{name}: largest value {max(largest):.3g} after {len(largest)} steps")
        figure.add_scatter(y=largest, name=name)
        runs.append(run)
    figure.update_layout(xaxis_title="step", yaxis_title="largest |value|, true: 0")
    figure.update_yaxes(type="log")
    figure.write_html("rl.html")
    print("picture: rl.html")
    if url := os.environ.get("SNC_URL"):
        print(f"runs: {url}/#/compare/{'/'.join(map(str, runs))}")


if __name__ == "__main__":
    main()
