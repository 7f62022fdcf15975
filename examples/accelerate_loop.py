"""accelerate: a loop of one's own with gradient accumulation; optimizer steps are counted.

Start the service with `snc serve`, set SNC_URL=http://127.0.0.1:8470, and run this file.
"""

import torch
from accelerate import Accelerator
from torch import nn

from snc_client.integrations.accelerate import attach

torch.manual_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
inputs = torch.randn(1024, 20)
data = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * inputs[:, 1:2])
loader = torch.utils.data.DataLoader(data, batch_size=16)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

with attach(accelerator, model, optimizer, threshold="1.5x init") as callback:
    for _ in range(3):
        for x, y in loader:
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(x), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    callback.step(loss=loss)

for name, values in callback.callback.latest.items():
    print(f"{name:10} sigma {values['sigma']:.3f}  threshold {values['threshold']:.3f}")
