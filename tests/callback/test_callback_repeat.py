"""A failed measurement is repeated if looking the weights up again can help, and only then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from snc_client import SNCallback


class Parametrization(nn.Module):
    """The identity, with something that happens on the way: what a user's own module may do."""

    def __init__(self) -> None:
        super().__init__()
        self.happens: Callable[[], None] = lambda: None

    def forward(self, weight: Tensor) -> Tensor:
        self.happens()
        return weight


def watched() -> tuple[nn.Sequential, Parametrization]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    parametrization = Parametrization()
    nn.utils.parametrize.register_parametrization(model[0], "weight", parametrization)
    return model, parametrization


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError, RuntimeError])
def test_an_error_that_a_second_look_cannot_mend_is_not_provoked_twice(error):
    model, parametrization = watched()
    with SNCallback(model, signals=()) as callback:
        failed = []

        def fails_once() -> None:
            if not failed:
                failed.append(True)
                raise error("no")

        parametrization.happens = fails_once
        callback.step()
        assert failed == [True]
        assert callback.errors == 1, "a second try would have succeeded"
        callback.step()
    assert callback.errors == 1
    assert callback.latest.step == 2


def test_out_of_memory_is_not_repeated_even_if_a_weight_was_replaced_meanwhile():
    model, parametrization = watched()
    with SNCallback(model, signals=()) as callback:
        callback.step()
        failed = []

        def fails_once() -> None:
            if not failed:
                failed.append(True)
                model[1].weight = nn.Parameter(model[1].weight.detach().clone())
                raise torch.cuda.OutOfMemoryError("no")

        parametrization.happens = fails_once
        callback.step()
        assert callback.errors == 1


@pytest.mark.parametrize("error", [LookupError, RuntimeError])
def test_a_weight_that_was_replaced_meanwhile_is_looked_up_again_in_the_same_step(error):
    model, parametrization = watched()
    with SNCallback(model, signals=()) as callback:
        callback.step()
        failed = []

        def fails_once() -> None:
            if not failed:
                failed.append(True)
                model[1].weight = nn.Parameter(2 * model[1].weight.detach())
                raise error("the weight is another one")

        parametrization.happens = fails_once
        callback.step()
        assert callback.errors == 0
    assert failed == [True]
    assert callback.latest.step == 2
    exact = float(torch.linalg.matrix_norm(model[1].weight.detach().double(), 2))
    assert callback.latest["1.weight"]["sigma"] == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize("change", [nn.Module.double, nn.Module.bfloat16])
def test_weights_of_another_type_are_measured_in_the_step_that_finds_them(change):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    with SNCallback(model, threshold=100.0) as callback:
        callback.step()
        change(model)
        callback.step()
    assert callback.errors == 0
    assert callback.latest.step == 2
