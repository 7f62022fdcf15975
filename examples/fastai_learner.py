"""fastai: the Learner gets one callback more.

Start the service with `snc serve`, set SNC_URL=http://127.0.0.1:8470, and run this file.
"""

import tempfile

import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from torch import nn

from snc_client.integrations.fastai import SNCFastaiCallback

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
inputs = torch.randn(1024, 20)
rows = list(zip(inputs, inputs[:, :1] * inputs[:, 1:2], strict=True))
loaders = DataLoaders.from_dsets(rows[:896], rows[896:], bs=32, num_workers=0, device="cpu")
callback = SNCFastaiCallback(threshold="1.5x init")

with tempfile.TemporaryDirectory() as folder:
    learner = Learner(loaders, model, loss_func=nn.MSELoss(), cbs=[callback], path=folder)
    learner.fit(2, lr=1e-2)

for name, values in callback.callback.latest.items():
    print(f"{name:10} sigma {values['sigma']:.3f}  threshold {values['threshold']:.3f}")
