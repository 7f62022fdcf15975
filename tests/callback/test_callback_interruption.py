"""Exceptions of signal handlers strike anywhere, and belong to the training."""

import signal

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from snc_client import SNCallback
from snc_client.callback.monitor.norms import NormSignals
from snc_client.callback.service.reporter import Reporter


class WorkerDied(RuntimeError):
    pass


@pytest.fixture(autouse=True)
def handler():
    def raise_it(*_):
        raise WorkerDied("as torch's loader does")

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield
    signal.signal(signal.SIGUSR1, before)


class Fails(nn.Module):
    """A parametrization that interrupts, or fails by itself, when the callback reads the weight."""

    what = None

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        if self.what == "signal":
            signal.raise_signal(signal.SIGUSR1)
        if self.what == "error":
            raise ValueError("a fault of the measurement")
        return weight


def test_an_exception_of_a_signal_handler_within_a_measurement_reaches_the_loop():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fails = Fails()
    parametrize.register_parametrization(model[0], "weight", fails)
    callback = SNCallback(model, threshold=0.5)
    callback.step()
    fails.what = "signal"
    with pytest.raises(WorkerDied):
        callback.step()
    fails.what = "error"
    callback.step()  # a fault of ours does not
    assert callback.errors == 2
    fails.what = None
    callback.step()
    callback.close()
    assert callback.latest.step == 4
    sigma = torch.linalg.matrix_norm(model[1].weight.detach().double(), 2).item()
    assert sigma <= 0.5 * 1.001


def test_an_exception_of_a_signal_handler_within_a_schedule_reaches_the_loop():
    def schedule(step: int) -> float:
        if step == 2:
            signal.raise_signal(signal.SIGUSR1)
        return 1.0

    callback = SNCallback(nn.Linear(4, 4), threshold=0.5, schedule=schedule)
    callback.step()
    with pytest.raises(WorkerDied):
        callback.step()
    callback.step()
    assert callback.errors == 1


def test_an_interrupted_report_loses_its_row_and_the_step_is_held_all_the_same(monkeypatch):
    model = nn.Linear(4, 4)
    callback = SNCallback(model, threshold=0.5)
    callback.step()

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGUSR1)

    with torch.no_grad():
        model.weight.mul_(3)
    monkeypatch.setattr(Reporter, "put", interrupt)
    with pytest.raises(WorkerDied):
        callback.step()
    monkeypatch.undo()
    sigma = torch.linalg.matrix_norm(model.weight.detach().double(), 2).item()
    assert sigma <= 0.5 * 1.001
    callback.close()
    assert (callback.errors, callback.latest.step) == (1, 2)


def test_an_exception_of_a_signal_handler_within_a_norm_reaches_the_loop(monkeypatch):
    callback = SNCallback(nn.Linear(4, 4), signals=("frobenius",))
    callback.step()

    def interrupt(*_: object) -> None:
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(NormSignals, "_measure_weights", interrupt)
    with pytest.raises(WorkerDied):
        callback.step()
    monkeypatch.undo()
    callback.step()
    callback.close()
    assert (callback.errors, callback.latest.step) == (1, 3)
