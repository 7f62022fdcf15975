"""Lightning's Trainer with the real library and the real service."""

import time

import pytest
import torch
from integration_cases import Rest, spectral_norm, worst_excess
from torch import nn

pl = pytest.importorskip(
    "lightning.pytorch", reason="install the extra [frameworks] to test Lightning"
)

from snc_client import ThresholdBreached  # noqa: E402
from snc_client.integrations.lightning import SNCLightningCallback  # noqa: E402

LAYER = "net.0.weight"
pytestmark = [
    # Lightning uses what torch has deprecated.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
    # Advice about the number of the loader's workers, and about a log of 1 step.
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # A resumed training writes its checkpoints where the first one did.
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


class Module(pl.LightningModule):
    """A regression on random data that logs its loss, and fails at a given batch."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self._fails_at = fails_at

    def training_step(self, batch, index):
        if index == self._fails_at:
            raise OSError("the disk is gone")
        loss = (self.net(batch) - 3).square().mean()
        self.log("fit", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-2)


def fit(folder, adapter, *, batches: int, module=None, ckpt_path=None, callbacks=(), **settings):
    data = torch.randn(8 * batches, 16, generator=torch.Generator().manual_seed(0))
    host = pl.Trainer(
        accelerator="cpu", max_epochs=settings.pop("epochs", 1), log_every_n_steps=1,
        callbacks=[*callbacks, adapter], default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, **{"devices": 1, **settings},
    )  # fmt: skip
    module = module or Module()
    host.fit(module, torch.utils.data.DataLoader(data, batch_size=8), ckpt_path=ckpt_path)
    return host, module


def adapter(**keywords) -> SNCLightningCallback:
    return SNCLightningCallback(**{"threshold": "1.2x init", "idle_every": 1, **keywords})


def test_a_training_is_held_counted_and_reported(rest: Rest, tmp_path):
    mine = adapter()
    host, module = fit(tmp_path, mine, batches=18, accumulate_grad_batches=3, logger=False)
    assert worst_excess(module, mine.callback) <= 1.001
    run = rest.only_run()
    assert (run["state"], run["last_step"], host.global_step) == ("finished", 6, 6)
    assert run["config"]["hparams"] == {"fails_at": None}
    assert rest.steps(run["run"], LAYER)[-6:] == list(range(1, 7))
    assert rest.scalar(run["run"], "lr") == pytest.approx(dict.fromkeys(range(1, 7), 3e-2))
    worst = rest.worst_ratios(run["run"])
    seen = host.callback_metrics["snc/worst_ratio"].item()
    assert seen in (pytest.approx(worst[6]), pytest.approx(worst[5]))


def test_the_loss_and_what_is_logged_are_those_of_the_module(rest: Rest, tmp_path):
    losses = []

    class Losses(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(outputs["loss"].item())

    fit(tmp_path, adapter(), batches=6, callbacks=[Losses()], logger=False)
    run = rest.only_run()["run"]
    assert rest.scalar(run, "loss") == pytest.approx(dict(enumerate(losses, 1)))
    assert rest.scalar(run, "fit") == pytest.approx(dict(enumerate(losses, 1)))


def test_a_resumed_training_continues_its_run_and_its_references(rest: Rest, tmp_path):
    init = spectral_norm(Module().net[0].weight)
    first, second = adapter(), adapter()
    host, _ = fit(tmp_path, first, batches=4, logger=False)
    host.save_checkpoint(path := tmp_path / "own.ckpt")
    fit(tmp_path, second, batches=4, epochs=2, ckpt_path=path, logger=False)
    assert second.callback.run == first.callback.run
    assert second.callback.latest[LAYER]["threshold"] == pytest.approx(1.2 * init, rel=1e-3)
    assert rest.only_run()["last_step"] == 8
    assert rest.steps(first.callback.run, LAYER)[-8:] == list(range(1, 9))


@pytest.mark.parametrize("action", ["stop", "checkpoint"])
def test_a_command_of_the_service_acts_through_the_trainer(rest: Rest, tmp_path, action):
    mine = adapter()

    class Asks(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                rest.command(mine.callback.run, action)
            if batch_idx > 2:
                time.sleep(0.1)

    host, _ = fit(tmp_path, mine, batches=30, callbacks=[Asks()], logger=False)
    assert (host.global_step < 30) == (action == "stop")
    assert bool(list(tmp_path.glob("snc-step=*.ckpt"))) == (action == "checkpoint")
    assert rest.only_run()["state"] == "finished"


def test_an_exception_in_mid_training_fails_the_run(rest: Rest, tmp_path):
    with pytest.raises(OSError, match="the disk is gone"):
        fit(tmp_path, adapter(), batches=8, module=Module(fails_at=5), logger=False)
    assert (rest.only_run()["state"], rest.only_run()["last_step"]) == ("failed", 5)


def test_a_breach_under_stop_leaves_fit_and_fails_the_run(rest: Rest, tmp_path):
    with pytest.raises(ThresholdBreached):
        fit(tmp_path, adapter(threshold="0.9x init", action="stop"), batches=8, logger=False)
    assert rest.only_run()["state"] == "failed"
