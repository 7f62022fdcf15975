"""PyTorch-Ignite's Engine with the real library and the real service."""

import time

import pytest
import torch
from integration_cases import Rest, spectral_norm, worst_excess
from torch import nn

# Ignite scripts some of its functions when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
with pytest.MonkeyPatch.context() as patch:
    patch.setattr("warnings.filters", [("ignore", None, DeprecationWarning, None, 0)])
    handlers = pytest.importorskip(
        "ignite.handlers", reason="install the extra [frameworks] to test Ignite"
    )
    engines = pytest.importorskip("ignite.engine")

from snc_client import ThresholdBreached  # noqa: E402
from snc_client.integrations.ignite import SNCHandler  # noqa: E402

LAYER = "0.weight"


class Training:
    """A regression on random data; fails at a given iteration."""

    def __init__(self, fails_at: int = 0, **keywords) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-2)
        self.engine = engines.Engine(self.update)
        keywords = {"threshold": "1.2x init", "idle_every": 1, **keywords}
        self.handler = SNCHandler(self.model, self.optimizer, **keywords).attach(self.engine)
        self.fails_at = fails_at
        self.losses = {}

    def update(self, engine, batch):
        if engine.state.iteration == self.fails_at:
            raise OSError("the disk is gone")
        self.optimizer.zero_grad()
        loss = (self.model(batch) - 3).square().mean()
        loss.backward()
        self.optimizer.step()
        self.losses[engine.state.iteration] = loss.item()
        return loss.item()

    def run(self, iterations: int, max_epochs: int = 1) -> "Training":
        data = torch.randn(iterations, 8, 16, generator=torch.Generator().manual_seed(0))
        self.engine.run(list(data), max_epochs=max_epochs)
        return self


def test_a_training_is_held_counted_and_reported(rest: Rest):
    training = Training().run(6)
    assert worst_excess(training.model, training.handler.callback) <= 1.001
    run = rest.only_run()
    assert (run["state"], run["last_step"]) == ("finished", 6)
    assert run["config"] == {"max_epochs": 1, "epoch_length": 6}
    assert rest.steps(run["run"], LAYER)[-6:] == list(range(1, 7))
    assert rest.scalar(run["run"], "loss") == pytest.approx(training.losses)
    worst = rest.worst_ratios(run["run"])
    seen = training.engine.state.metrics["snc/worst_ratio"]
    assert seen in (pytest.approx(worst[6]), pytest.approx(worst[5]))


def test_a_resumed_training_continues_its_run_and_its_references(rest: Rest, tmp_path):
    def parts(training: Training):
        return {
            "engine": training.engine,
            "model": training.model,
            "optimizer": training.optimizer,
            "snc": training.handler,
        }

    first, second = Training(), Training()
    init = spectral_norm(first.model[0].weight)
    saver = handlers.DiskSaver(tmp_path, create_dir=True)
    save = handlers.Checkpoint(parts(first), saver)
    first.engine.add_event_handler(engines.Events.EPOCH_COMPLETED, save)
    first.run(4)
    saved = torch.load(next(tmp_path.glob("*.pt")), weights_only=True)
    handlers.Checkpoint.load_objects(parts(second), saved)
    second.run(4, max_epochs=2)
    assert second.handler.callback.run == first.handler.callback.run
    held = second.handler.callback.latest[LAYER]["threshold"]
    assert held == pytest.approx(1.2 * init, rel=1e-3)
    assert rest.only_run()["last_step"] == 8
    assert rest.steps(second.handler.callback.run, LAYER)[-8:] == list(range(1, 9))


def test_a_command_of_the_service_terminates_the_engine(rest: Rest):
    training = Training()

    @training.engine.on(engines.Events.ITERATION_COMPLETED)
    def ask(engine):
        if engine.state.iteration == 2:
            rest.command(training.handler.callback.run, "stop")
        if engine.state.iteration > 2:
            time.sleep(0.1)

    training.run(60)
    assert 2 < training.engine.state.iteration < 60
    assert rest.only_run()["state"] == "finished"


def test_an_exception_in_mid_training_fails_the_run(rest: Rest):
    with pytest.raises(OSError, match="the disk is gone"):
        Training(fails_at=6).run(8)
    assert (rest.only_run()["state"], rest.only_run()["last_step"]) == ("failed", 5)


def test_a_breach_under_stop_leaves_the_engine_and_fails_the_run(rest: Rest):
    with pytest.raises(ThresholdBreached):
        Training(threshold="0.9x init", action="stop").run(8)
    assert rest.only_run()["state"] == "failed"
