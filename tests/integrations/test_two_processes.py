"""Two processes of one job under accelerate, Lightning and Trainer: one run, and equal replicas."""

import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from integration_cases import Rest, started

CODE = {
    "accelerate": """
from test_accelerate import *
training = Training()
training.run(8)
model = training.accelerator.unwrap_model(training.model)
""",
    "lightning": """
from test_lightning import *
_, model = fit(folder, adapter(), batches=8, devices=2, strategy="ddp", logger=False)
""",
    "transformers": """
from test_transformers import *
host = trainer(folder, SNCTrainerCallback(threshold="1.2x init", idle_every=1), steps=4)
host.train()
model = host.model
""",
}


def ranks(folder: Path, url: str, code: str) -> "list[subprocess.Popen[bytes]]":
    """Start two ranks as torchrun does, and have them leave their weights in ``folder``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "tests"}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": "0"}
    return [
        started(
            folder,
            url,
            f"{code}\ntorch.save(model.state_dict(), folder / '{rank}.pt')\n",
            RANK=rank,
            LOCAL_RANK=rank,
            **world,
        )
        for rank in "01"
    ]


@pytest.mark.parametrize("package", CODE)
def test_two_processes_are_one_run_and_equal_replicas(rest: Rest, tmp_path, package):
    if find_spec(package) is None:
        pytest.skip(f"{package} is missing: install the extra [frameworks]")
    both = ranks(tmp_path, rest.url, CODE[package])
    try:
        assert [rank.wait(timeout=100) for rank in both] == [0, 0]
    finally:
        for rank in both:
            rank.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert (rest.only_run()["state"], rest.only_run()["last_step"]) == ("finished", 4)
