"""PyTorch-Ignite: the training engine gets one handler more.

Start the service with `snc serve`, set SNC_URL=http://127.0.0.1:8470, and run this file.
"""

import torch
from ignite.engine import create_supervised_trainer
from torch import nn

from snc_client.integrations.ignite import SNCHandler

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
inputs = torch.randn(1024, 20)
data = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * inputs[:, 1:2])

trainer = create_supervised_trainer(model, optimizer, nn.MSELoss())
handler = SNCHandler(model, optimizer, threshold="1.5x init").attach(trainer)
trainer.run(torch.utils.data.DataLoader(data, batch_size=32), max_epochs=2)

for name, values in handler.callback.latest.items():
    print(f"{name:10} sigma {values['sigma']:.3f}  threshold {values['threshold']:.3f}")
