"""Two processes of one job under accelerate and Lightning: one run, and equal replicas."""

import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from integration_cases import Rest

HERE = Path(__file__).parent
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
}


def started(folder: Path, url: str, code: str, rank: int, port: int) -> "subprocess.Popen[bytes]":
    """Start one rank as torchrun does, and have it leave its weights in ``folder``."""
    script = (
        f"from pathlib import Path\nfolder = Path({str(folder)!r})\n{code}\n"
        f"torch.save(model.state_dict(), folder / '{rank}.pt')\n"
    )
    environment = {
        "SNC_URL": url,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent / "support"), *sys.path]),
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
        **{"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "tests"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
    }
    return subprocess.Popen([sys.executable, "-c", script], env={**os.environ, **environment})


@pytest.mark.parametrize("package", CODE)
def test_two_processes_are_one_run_and_equal_replicas(rest: Rest, tmp_path, package):
    if find_spec(package) is None:
        pytest.skip(f"{package} is missing: install the extra [frameworks]")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [started(tmp_path, rest.url, CODE[package], rank, port) for rank in range(2)]
    try:
        assert [rank.wait(timeout=100) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert (rest.only_run()["state"], rest.only_run()["last_step"]) == ("finished", 4)
