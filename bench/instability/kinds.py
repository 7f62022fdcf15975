"""The kinds of training, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kinds_of_image import (
    ActorCritic,
    Adversarial,
    Autoencoder,
    Contrastive,
    Denoising,
    MeanTeacher,
    ResidualNet,
    Table,
    Variational,
)
from kinds_of_sequence import experts, low_rank, modern, new_head, recurrent
from tasks import Convolutions, Perceptron, Task, Transformer, Values

KINDS: dict[str, Callable[..., Task]] = {
    "tf": Transformer, "mlp": Perceptron, "cnn": Convolutions, "td": Values,
    "modern": modern, "moe": experts, "rnn": recurrent, "lora": low_rank, "tune": new_head,
    "res": ResidualNet, "diff": Denoising, "pairs": Contrastive, "vae": Variational,
    "ae": Autoencoder, "teacher": MeanTeacher, "gan": Adversarial, "table": Table,
    "ac": ActorCritic,
}  # fmt: skip


def make(task: str, seed: int, options: dict[str, Any]) -> Task:
    return KINDS[task](seed, **options)
