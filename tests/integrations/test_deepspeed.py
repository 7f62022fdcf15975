"""DeepSpeed's engine in one process on the CPU: SNCallback takes it as the optimizer."""

import json
import socket
from importlib.util import find_spec

import pytest
from integration_cases import Rest, started

pytestmark = pytest.mark.skipif(
    find_spec("deepspeed") is None, reason="install the extra [frameworks] to test DeepSpeed"
)

# In a process of its own: DeepSpeed opens a process group and changes what torch prints.
CODE = """
import json
import torch
import deepspeed
import deepspeed.comm.torch
from integration_cases import worst_excess
from snc_client import SNCallback

# No collective of its own for the CPU: it would be compiled first.
deepspeed.comm.torch.build_shm_op = lambda: None
deepspeed.init_distributed(dist_backend="gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters(), lr=3e-2),
    config={
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": low},
    },
)
dtype = next(engine.module.parameters()).dtype
with SNCallback(
    engine.module, optimizer=engine, threshold="1.2x init", idle_every=1
) as callback:
    for _ in range(12):
        engine.backward((engine(torch.randn(4, 16, dtype=dtype)) - 3).square().mean())
        engine.step()
names = [layer.name for layer in callback.layers.layers]
(folder / "told.json").write_text(json.dumps([worst_excess(engine.module, callback), names]))
"""


@pytest.mark.parametrize(("stage", "low"), [(0, False), (1, False), (2, False), (1, True)])
def test_each_optimizer_step_is_held_and_counted(stage, low, rest: Rest, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    world |= {"MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    assert (
        started(tmp_path, rest.url, f"stage, low = {stage}, {low}\n{CODE}", **world).wait(
            timeout=100
        )
        == 0
    )
    excess, names = json.loads((tmp_path / "told.json").read_text())
    assert excess <= 1.001
    assert names == ["0.weight", "2.weight"]
    run = rest.only_run()
    assert (run["state"], run["last_step"]) == ("finished", 6)
    assert rest.steps(run["run"], names[0])[-6:] == list(range(1, 7))
