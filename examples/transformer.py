"""A character transformer under a hot learning rate; query and key free, and held.

It reads the source of Python's standard library. Start the service with `snc serve`, set
SNC_URL=http://127.0.0.1:8470, and run this file. `--short` takes a few seconds. The picture,
transformer.html, needs plotly: pip install '.[plots]'.
"""

import argparse
import os

import torch
import torch.nn.functional as F
from plotly.subplots import make_subplots
from torch import Tensor

from snc_client import SNCallback
from snc_client.demo.model import CharTransformer
from snc_client.demo.text import VOCABULARY, encode, minibatches, standard_library_text

CONTEXT, LR = 32, 0.03
# Attention logits grow with the product of query and key; no other layer needs a threshold.
HELD = {"threshold": {"blocks.*.query.weight": "3x init", "blocks.*.key.weight": "3x init"}}


def train(
    text: Tensor, steps: int, name: str, **hold: object
) -> tuple[list[float], list[float], str | None]:
    """Return the loss and the largest sigma of query and key by step, and the run's id."""
    torch.manual_seed(0)
    model = CharTransformer(VOCABULARY, CONTEXT, width=64, heads=4, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), LR)
    batches = minibatches(text, batch_size=16, context=CONTEXT, seed=0)
    losses, sigma = [], []
    with SNCallback(model, optimizer=optimizer, name=name, **hold) as callback:
        for _ in range(steps):
            inputs, targets = next(batches)
            loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            callback.step(loss=loss)
            losses.append(float(loss.detach()))
            values = callback.latest
            sigma.append(max(v["sigma"] for k, v in values.items() if "query" in k or "key" in k))
        return losses, sigma, callback.run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="a few seconds")
    steps = 30 if parser.parse_args().short else 1000
    text = encode(standard_library_text(300_000))
    figure = make_subplots(1, 2, subplot_titles=("loss", "largest sigma of query and key"))
    runs = []
    named = (("gray", "query and key free", {}), ("blue", "query and key held", HELD))
    for ink, name, hold in named:
        losses, sigma, run = train(text, steps, name, **hold)
        end = sum(losses[-20:]) / 20
        print(f"{name}: loss {end:.2f}, largest sigma at the end {sigma[-1]:.2f}")
        figure.add_scatter(y=losses, name=name, line_color=ink, legendgroup=name, row=1, col=1)
        figure.add_scatter(y=sigma, line_color=ink, legendgroup=name, showlegend=False,
                           row=1, col=2)  # fmt: skip
        runs.append(run)
    figure.write_html("transformer.html")
    print("picture: transformer.html")
    if url := os.environ.get("SNC_URL"):
        print(f"runs: {url}/#/compare/{'/'.join(map(str, runs))}")


if __name__ == "__main__":
    main()
