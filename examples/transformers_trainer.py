"""Hugging Face Trainer: a small GPT-2 learns to count, every layer held under 1.5 times its start.

Start the service with `snc serve`, set SNC_URL=http://127.0.0.1:8470, and run this file.
"""

import tempfile

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from snc_client.integrations.transformers import SNCTrainerCallback


class Counting(torch.utils.data.Dataset):
    def __len__(self):
        return 512

    def __getitem__(self, index):
        row = (torch.arange(16) + index) % 50
        return {"input_ids": row, "labels": row}


torch.manual_seed(0)
config = GPT2Config(
    vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
)
callback = SNCTrainerCallback(threshold="1.5x init")

with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=40,
        per_device_train_batch_size=16,
        learning_rate=1e-2,
        logging_steps=10,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    model = GPT2LMHeadModel(config)
    Trainer(model, arguments, train_dataset=Counting(), callbacks=[callback]).train()

for name, values in callback.callback.latest.items():
    if values["threshold"] is not None:
        print(f"{name:40} sigma {values['sigma']:.3f}  threshold {values['threshold']:.3f}")
