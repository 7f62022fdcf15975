"""The callback hangs on the optimizer inside what a framework wraps around it."""

import pytest
import torch
from torch import nn

from snc_client import SNCallback


class Delegate(torch.optim.Optimizer):
    """A torch optimizer by class that never calls its constructor, as accelerate's is."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Engine:
    """No torch optimizer; it holds a wrapper under a private name."""

    def __init__(self, optimizer: Delegate) -> None:
        self._optimizer = optimizer

    def step(self) -> None:
        self._optimizer.step()


@pytest.mark.parametrize("wrap", [Delegate, lambda opt: Engine(Delegate(opt))])
def test_a_wrapped_optimizer_counts_its_steps(wrap):
    model = nn.Linear(8, 4)
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    with SNCallback(model, optimizer=optimizer) as callback:
        for _ in range(5):
            model(torch.randn(2, 8)).sum().backward()
            optimizer.step()
    assert callback.state_dict()["step"] == 5
    assert callback.errors == 0


def test_an_optimizer_with_hooks_of_its_own_is_not_unwrapped():
    class Lookahead(torch.optim.SGD):
        """A whole optimizer that also steps another one, several times in a step of its own."""

        def step(self, closure=None):
            for _ in range(3):
                self.optimizer.step()

    model = nn.Linear(8, 4)
    outer = Lookahead(model.parameters(), lr=0.1)
    outer.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with SNCallback(model, optimizer=outer) as callback:
        outer.step()
    assert callback.state_dict()["step"] == 1


def test_a_wrapper_around_nothing_is_refused_by_its_type():
    class Empty:
        optimizer = None

    empty = Empty()
    empty.optimizer = empty
    with pytest.raises(ValueError, match=r"torch\.optim\.Optimizer, got Empty"):
        SNCallback(nn.Linear(8, 4), optimizer=empty)
