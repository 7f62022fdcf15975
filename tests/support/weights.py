"""What the layer tests share: explicit matrices, and small modules that real libraries write."""

import torch
from torch import nn

from snc_client.layers import Coverage, Layer


def dense(layer: Layer) -> torch.Tensor:
    """Return the matrix that is measured, column by column."""
    operator = layer.operator()
    return operator.matmul(torch.eye(operator.shape[1]))


def spectral_norm(matrix: torch.Tensor) -> float:
    return float(torch.linalg.svdvals(matrix.detach().double())[0])


def named(coverage: Coverage) -> dict[str, Layer]:
    return {layer.name: layer for layer in coverage.layers}


def reasons(coverage: Coverage) -> dict[str, str]:
    return {skipped.name: skipped.reason for skipped in coverage.skipped}


def assert_measures(layer: Layer, matrix: torch.Tensor) -> None:
    """Check that sigma is of a matrix with exactly these singular values, and of this shape."""
    expected = torch.linalg.svdvals(matrix.detach().double())
    found = torch.linalg.svdvals(dense(layer).double())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert (layer.fan_out, layer.fan_in) == tuple(matrix.shape)


def assert_scales(layer: Layer, others: list[Layer], factor: float = 0.5) -> None:
    """Check that writing `weight` scales what is measured, and nothing else."""
    assert layer.writable
    before, untouched = dense(layer), [dense(other) for other in others]
    layer.weight().mul_(factor)
    torch.testing.assert_close(dense(layer), before * factor, atol=1e-6, rtol=1e-5)
    for other, matrix in zip(others, untouched, strict=True):
        assert torch.equal(dense(other), matrix)


class Conv1D(nn.Module):
    """The linear layer of GPT-2 in Hugging Face's transformers: its weight is in x out."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


class Experts(nn.Module):
    """A stack of expert matrices, as mixtures of experts keep them."""

    def __init__(self, experts: int, outputs: int, inputs: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(experts, outputs, inputs))


class LoraLinear(nn.Module):
    """A linear layer with a low-rank pair beside it, laid out as PEFT does."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outputs, bias=False)})
