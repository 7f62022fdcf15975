"""The smallest loop: two lines make every layer measured, held under a threshold and streamed.

Start the service with `snc serve`, set SNC_URL=http://127.0.0.1:8470, and run this file.
Without SNC_URL it measures and enforces all the same.
"""

import torch
from torch import nn

from snc_client import SNCallback

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
inputs = torch.randn(512, 20)
targets = inputs[:, :1] * inputs[:, 1:2]

with SNCallback(model, threshold="2x init") as callback:
    for _ in range(200):
        loss = nn.functional.mse_loss(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        callback.step(loss=loss)

for name, values in callback.latest.items():
    print(f"{name:12} sigma {values['sigma']:.3f}  threshold {values['threshold']:.3f}")
