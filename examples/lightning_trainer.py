"""Lightning: a small network learns a product, every layer held under 1.5 times its start.

Start the service with `snc serve`, set SNC_URL=http://127.0.0.1:8470, and run this file.
"""

import lightning.pytorch as pl
import torch
from torch import nn

from snc_client.integrations.lightning import SNCLightningCallback


class Product(pl.LightningModule):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, 1))

    def training_step(self, batch, index):
        inputs, targets = batch
        loss = nn.functional.mse_loss(self.net(inputs), targets)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


torch.manual_seed(0)
inputs = torch.randn(1024, 20)
data = torch.utils.data.TensorDataset(inputs, inputs[:, :1] * inputs[:, 1:2])
callback = SNCLightningCallback(threshold="1.5x init")
trainer = pl.Trainer(
    max_epochs=2,
    accelerator="cpu",
    callbacks=[callback],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    log_every_n_steps=10,
)
trainer.fit(Product(), torch.utils.data.DataLoader(data, batch_size=32))

for name, values in callback.callback.latest.items():
    print(f"{name:16} sigma {values['sigma']:.3f}  threshold {values['threshold']:.3f}")
