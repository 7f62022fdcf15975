"""accelerate's prepared loops with the real library and the real service."""

import pytest
import torch
from integration_cases import Rest, spectral_norm, worst_excess
from torch import nn

accelerate = pytest.importorskip(
    "accelerate", reason="install the extra [frameworks] to test accelerate"
)

from snc_client.integrations.accelerate import attach  # noqa: E402

LAYER = "0.weight"


class Training:
    """A regression on random data, its gradients accumulated over two batches."""

    def __init__(self, **keywords) -> None:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-2)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        keywords = {"threshold": "1.2x init", "idle_every": 1, **keywords}
        self.attached = attach(self.accelerator, self.model, self.optimizer, **keywords)

    def run(self, batches: int, fails_at: int | None = None) -> dict[int, float]:
        own = torch.Generator().manual_seed(self.accelerator.process_index)
        data = torch.randn(batches, 8, 16, generator=own)
        losses = {}
        with self.attached as callback:
            for index, batch in enumerate(data, 1):
                if index == fails_at:
                    raise OSError("the disk is gone")
                with self.accelerator.accumulate(self.model):
                    loss = (self.model(batch) - 3).square().mean()
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                    if self.accelerator.sync_gradients:
                        callback.step(loss=loss)
                        losses[index // 2] = loss.item()
        return losses


def test_a_training_is_held_counted_and_reported(rest: Rest):
    training = Training()
    losses = training.run(12)
    assert worst_excess(training.model, training.attached.callback) <= 1.001
    run = rest.only_run()
    assert (run["state"], run["last_step"]) == ("finished", 6)
    assert run["config"]["gradient_accumulation_steps"] == 2
    assert rest.steps(run["run"], LAYER)[-6:] == list(range(1, 7))
    assert rest.scalar(run["run"], "loss") == pytest.approx(losses)


def test_a_resumed_training_continues_its_run_and_its_references(rest: Rest, tmp_path):
    first = Training()
    init = spectral_norm(first.model[0].weight)
    first.run(8)
    first.accelerator.save_state(str(tmp_path))
    second = Training()
    second.accelerator.load_state(str(tmp_path))
    second.run(8)
    assert second.attached.callback.run == first.attached.callback.run
    held = second.attached.callback.latest[LAYER]["threshold"]
    assert held == pytest.approx(1.2 * init, rel=1e-3)
    assert rest.only_run()["last_step"] == 8
    assert rest.steps(second.attached.callback.run, LAYER)[-8:] == list(range(1, 9))


def test_an_exception_in_mid_training_fails_the_run(rest: Rest):
    with pytest.raises(OSError, match="the disk is gone"):
        Training().run(12, fails_at=9)
    assert (rest.only_run()["state"], rest.only_run()["last_step"]) == ("failed", 4)


def test_a_tracker_gets_the_worst_ratio(rest: Rest):
    class Kept(accelerate.tracking.GeneralTracker):
        name, requires_logging_directory, tracker = "kept", False, None
        rows: dict[int, float]

        def __init__(self) -> None:
            super().__init__()
            self.rows = {}

        def log(self, values, step, **_):
            self.rows[step] = values["snc/worst_ratio"]

    training = Training()
    training.accelerator.trackers.append(kept := Kept())
    training.run(12)
    worst = rest.worst_ratios(rest.only_run()["run"])
    assert kept.rows
    assert all(worst[step] == pytest.approx(ratio) for step, ratio in kept.rows.items())
