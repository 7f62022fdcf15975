"""fastai's Learner with the real library and the real service."""

import time

import pytest
import torch
from integration_cases import Rest, spectral_norm, started, worst_excess
from torch import nn

# fastai scripts some of its functions when it is imported.
with pytest.MonkeyPatch.context() as patch:
    patch.setattr("warnings.filters", [("ignore", None, Warning, None, 0)])
    learners = pytest.importorskip(
        "fastai.learner", reason="install the extra [frameworks] to test fastai"
    )
    data = pytest.importorskip("fastai.data.core")

from snc_client.integrations.fastai import SNCFastaiCallback

LAYER = "0.weight"


class Asks(learners.Callback):
    """Has the service stop the run after two steps."""

    order = 80

    def __init__(self, rest: Rest, mine: SNCFastaiCallback) -> None:
        self._rest, self._mine, self._steps = rest, mine, 0

    def after_step(self):
        self._steps += 1
        if self._steps == 2:
            self._rest.command(self._mine.callback.run, "stop")
        if self._steps > 2:
            time.sleep(0.1)


class Fails(learners.Callback):
    """Fails at the third batch."""

    def before_batch(self):
        if self.iter == 2:
            raise OSError("the disk is gone")


def learner(folder, *callbacks, batches: int = 6) -> "learners.Learner":
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(8 * batches, 16, generator=torch.Generator().manual_seed(0))
    rows = list(zip(x, torch.full((len(x), 4), 3.0), strict=True))
    loaders = data.DataLoaders.from_dsets(rows, rows[:8], bs=8, num_workers=0, device="cpu")
    return learners.Learner(
        loaders, model, loss_func=nn.MSELoss(), cbs=list(callbacks), path=folder, lr=3e-2
    )


def callback(**keywords) -> SNCFastaiCallback:
    return SNCFastaiCallback(**{"threshold": "1.2x init", "idle_every": 1, **keywords})


def fit(learn, epochs: int = 1) -> None:
    learn.logger = lambda *_: None
    learn.fit(epochs)


def test_a_training_is_held_counted_and_reported(rest: Rest, tmp_path):
    learn = learner(tmp_path, mine := callback())
    fit(learn)
    assert worst_excess(learn.model, mine.callback) <= 1.001
    run = rest.only_run()
    assert (run["state"], run["last_step"]) == ("finished", 6)
    assert run["config"]["n_epoch"] == 1
    assert rest.steps(run["run"], LAYER)[-6:] == list(range(1, 7))
    assert len(rest.scalar(run["run"], "loss")) == 6
    worst = rest.worst_ratios(run["run"])
    assert learn.snc_worst_ratio in (pytest.approx(worst[6]), pytest.approx(worst[5]))


def test_the_values_of_an_epoch_come_with_the_next_step(rest: Rest, tmp_path):
    learn = learner(tmp_path, callback())
    fit(learn, epochs=2)
    _, valid = learn.recorder.values[0]
    assert rest.scalar(rest.only_run()["run"], "valid_loss") == pytest.approx({7: valid})


# fastai names what a file may hold by numpy's old name of it.
@pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")
def test_a_resumed_training_continues_its_run_and_its_references(rest: Rest, tmp_path):
    learn = learner(tmp_path, first := callback())
    init = spectral_norm(learn.model[0].weight)
    fit(learn)
    learn.save("own")
    again = learner(tmp_path, second := callback(resume=True))
    again.load("own")
    fit(again)
    assert second.callback.run == first.callback.run
    assert second.callback.latest[LAYER]["threshold"] == pytest.approx(1.2 * init, rel=1e-3)
    assert rest.only_run()["last_step"] == 12
    assert rest.steps(first.callback.run, LAYER)[-12:] == list(range(1, 13))


def test_a_command_of_the_service_cancels_the_fit(rest: Rest, tmp_path):
    mine = callback()
    learn = learner(tmp_path, mine, batches=60)
    learn.add_cb(Asks(rest, mine))
    fit(learn)
    run = rest.only_run()
    assert run["state"] == "finished"
    assert 2 < run["last_step"] < 60


@pytest.mark.parametrize("caught", [False, True])
def test_an_exception_in_mid_training_fails_the_run_with_its_last_row(rest: Rest, tmp_path, caught):
    code = (
        "from test_fastai import *\n"
        "learn = learner(folder, callback(), Fails())\n"
        "try:\n    fit(learn)\n"
        f"except {'OSError' if caught else 'KeyError'}:\n    pass\n"
        "finally:\n    torch.save(learn.model[0].weight, folder / 'weight.pt')\n"
    )
    assert started(tmp_path, rest.url, code).wait(timeout=100) == (0 if caught else 1)
    run = rest.only_run()
    assert (run["state"], run["last_step"]) == ("failed", 2)
    left = spectral_norm(torch.load(tmp_path / "weight.pt"))
    assert rest.left(run["run"], LAYER) == (2, pytest.approx(left, rel=1e-3))


def test_a_fit_after_one_that_failed_continues_its_run(rest: Rest, tmp_path):
    learn = learner(tmp_path, mine := callback(), fails := Fails())
    with pytest.raises(OSError, match="the disk is gone"):
        fit(learn)
    failed, threshold = mine.callback, mine.callback.latest[LAYER]["threshold"]
    learn.remove_cb(fails)
    fit(learn)
    assert mine.callback is not failed
    assert mine.callback.latest[LAYER]["threshold"] == threshold
    run = rest.only_run()
    assert (run["run"], run["state"], run["last_step"]) == (failed.run, "finished", 8)
    assert rest.steps(failed.run, LAYER)[-8:] == list(range(1, 9))
