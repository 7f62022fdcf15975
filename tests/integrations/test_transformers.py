"""Hugging Face Trainer with the real library and the real service."""

import time

import pytest
import torch
from integration_cases import Rest, spectral_norm, started, worst_excess

transformers = pytest.importorskip(
    "transformers", reason="install the extra [frameworks] to test Hugging Face Trainer"
)

from snc_client import ThresholdBreached  # noqa: E402
from snc_client.integrations.transformers import SNCTrainerCallback  # noqa: E402

LAYER = "transformer.h.0.mlp.c_fc.weight"


class Tokens(torch.utils.data.Dataset):
    """Random tokens, to be predicted from themselves."""

    def __init__(self, fails_at: int = 10_000) -> None:
        self._rows = torch.randint(0, 64, (96, 8), generator=torch.Generator().manual_seed(0))
        self._fails_at = fails_at
        self._asked = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self._asked += 1
        if self._asked > self._fails_at:
            raise OSError("the disk is gone")
        return {"input_ids": self._rows[index], "labels": self._rows[index]}


def tiny_gpt2() -> "transformers.PreTrainedModel":
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=64, n_positions=8, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def trainer(folder, callback, *, steps: int, data=None, callbacks=(), **arguments):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4,
        gradient_accumulation_steps=2, learning_rate=3e-2, logging_steps=1, save_steps=4,
        report_to=[], use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False, **arguments,
    )  # fmt: skip
    return transformers.Trainer(
        tiny_gpt2(), arguments, train_dataset=data or Tokens(), callbacks=[*callbacks, callback]
    )


def test_a_training_is_held_counted_and_reported(rest: Rest, tmp_path):
    adapter = SNCTrainerCallback(threshold="1.2x init", idle_every=1)
    host = trainer(tmp_path, adapter, steps=8)
    host.train()
    assert worst_excess(host.model, adapter.callback) <= 1.001
    run = rest.only_run()
    assert (run["state"], run["last_step"]) == ("finished", 8)
    assert run["config"]["arguments"]["learning_rate"] == 3e-2
    assert run["config"]["model"]["n_embd"] == 16
    assert rest.steps(run["run"], LAYER)[-8:] == list(range(1, 9))
    logged = {e["step"]: e["loss"] for e in host.state.log_history if "loss" in e}
    assert rest.scalar(run["run"], "loss") == pytest.approx(logged)
    rates = {e["step"]: e["learning_rate"] for e in host.state.log_history if "loss" in e}
    assert rest.scalar(run["run"], "lr") == pytest.approx(rates)
    ratios = {e["step"]: e["snc/worst_ratio"] for e in host.state.log_history[1:]}
    worst = rest.worst_ratios(run["run"])
    for step, ratio in ratios.items():
        assert ratio in (pytest.approx(worst[step]), pytest.approx(worst[step - 1]))


def test_a_resumed_training_continues_its_run_and_its_references(rest: Rest, tmp_path):
    host = trainer(
        tmp_path, first := SNCTrainerCallback(threshold="1.2x init", idle_every=1), steps=4
    )
    init = spectral_norm(dict(host.model.named_parameters())[LAYER])
    host.train()
    again = trainer(
        tmp_path, second := SNCTrainerCallback(threshold="1.2x init", idle_every=1), steps=8
    )
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert second.callback.run == first.callback.run
    assert second.callback.latest[LAYER]["threshold"] == pytest.approx(1.2 * init, rel=1e-3)
    assert rest.only_run()["last_step"] == 8
    assert rest.steps(first.callback.run, LAYER)[-8:] == list(range(1, 9))


def test_a_training_that_failed_resumes_in_the_same_process(rest: Rest, tmp_path):
    adapter = SNCTrainerCallback(threshold="1.2x init", idle_every=1)
    host = trainer(tmp_path, adapter, steps=8, data=(data := Tokens(fails_at=44)))
    init = spectral_norm(dict(host.model.named_parameters())[LAYER])
    with pytest.raises(OSError, match="the disk is gone"):
        host.train()
    failed, data._fails_at = adapter.callback, 10_000
    host.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert adapter.callback is not failed
    assert adapter.callback.latest[LAYER]["threshold"] == pytest.approx(1.2 * init, rel=1e-3)
    run = rest.only_run()
    assert (run["run"], run["state"], run["last_step"]) == (failed.run, "finished", 8)


class Commands(transformers.TrainerCallback):
    """Has the service ask for something after two steps, and waits until the job has heard it."""

    def __init__(self, rest: Rest, adapter: SNCTrainerCallback, action: str) -> None:
        self._rest, self._adapter, self._action = rest, adapter, action

    def on_step_end(self, args, state, control, **kwargs):
        run = self._adapter.callback.run
        if state.global_step == 2:
            self._rest.command(run, self._action)
        if state.global_step > 2:
            time.sleep(0.1)


def test_a_command_of_the_service_stops_the_trainer(rest: Rest, tmp_path):
    adapter = SNCTrainerCallback(threshold="3x init", idle_every=1)
    host = trainer(tmp_path, adapter, steps=200, callbacks=[Commands(rest, adapter, "stop")])
    host.train()
    assert 2 < host.state.global_step < 200
    assert (rest.only_run()["state"], rest.only_run()["last_step"]) == (
        "finished",
        host.state.global_step,
    )


def test_a_command_of_the_service_has_the_trainer_write_a_checkpoint(rest: Rest, tmp_path):
    adapter = SNCTrainerCallback(threshold="3x init")
    asking = Commands(rest, adapter, "checkpoint")
    trainer(tmp_path, adapter, steps=30, callbacks=[asking], save_strategy="no").train()
    assert list(tmp_path.glob("checkpoint-*/snc_state.pt"))


@pytest.mark.parametrize("caught", [False, True])
def test_an_exception_in_mid_training_fails_the_run(rest: Rest, tmp_path, caught):
    code = (
        "from test_transformers import *\n"
        "host = trainer(folder, SNCTrainerCallback(), steps=8, data=Tokens(fails_at=24))\n"
        + ("try:\n    host.train()\nexcept OSError:\n    pass" if caught else "host.train()")
    )
    assert started(tmp_path, rest.url, code).wait(timeout=100) == (0 if caught else 1)
    assert rest.only_run()["state"] == "failed"
    assert rest.only_run()["last_step"] >= 1


def test_a_breach_under_stop_leaves_the_trainer_and_fails_the_run(rest: Rest, tmp_path):
    adapter = SNCTrainerCallback(threshold="0.9x init", action="stop")
    host = trainer(tmp_path, adapter, steps=8)
    with pytest.raises(ThresholdBreached):
        host.train()
    first = adapter.callback.run
    with pytest.raises(ThresholdBreached):
        host.train()
    assert adapter.callback.run != first
    assert rest.get(f"/runs/{first}")["state"] == "failed"
    adapter.callback.close()


# TRL sets the field under the name that transformers is about to rename.
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_trl_trains_with_the_same_callback(rest: Rest, tmp_path):
    trl = pytest.importorskip("trl", reason="install the extra [frameworks] to test TRL")
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"input_ids": [[i % 60, 3, 5, i % 7] for i in range(64)]})
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), max_steps=4, per_device_train_batch_size=4, learning_rate=3e-2,
        logging_steps=1, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
        dataloader_pin_memory=False, save_strategy="no",
    )  # fmt: skip
    adapter = SNCTrainerCallback(threshold="1.2x init", idle_every=1)
    host = trl.SFTTrainer(
        tiny_gpt2(), arguments, train_dataset=rows, processing_class=words(), callbacks=[adapter]
    )
    host.train()
    assert worst_excess(host.model, adapter.callback) <= 1.001
    run = rest.only_run()
    assert (run["state"], run["last_step"]) == ("finished", 4)
    assert "entropy" in run["scalars"] or "mean_token_accuracy" in run["scalars"]


def words() -> "transformers.PreTrainedTokenizerFast":
    """Return a tokenizer of 64 words, made here."""
    from tokenizers import Tokenizer, models

    vocabulary = {f"w{i}": i for i in range(64)}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="w0")),
        eos_token="w1", pad_token="w2", unk_token="w0",
    )  # fmt: skip
