"""DeepSpeed's ZeRO on two processes: whole weights with distributed masters, and ZeRO-3."""

import json
import os
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.timeout(240),  # on a busy machine two imports of DeepSpeed take more than a minute
    pytest.mark.skipif(
        find_spec("deepspeed") is None, reason="install the extra [frameworks] to test DeepSpeed"
    ),
]
RANKS = 2

# In processes of their own: DeepSpeed opens a process group and changes what torch prints.
CODE = """
import json
import os
import sys
import torch
import deepspeed
import deepspeed.comm.torch
from snc_client import SNCallback

# No collective of its own for the CPU: it would be compiled first.
sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
stage, low, kept, folder = json.loads(sys.argv[1])
rank = os.environ["RANK"]
deepspeed.init_distributed(dist_backend="gloo")
torch.manual_seed(0)
# Odd sizes: the processes meet within a row.
model = torch.nn.Sequential(torch.nn.Linear(16, 33), torch.nn.ReLU(), torch.nn.Linear(33, 5))
engine, *_ = deepspeed.initialize(
    model=model,
    optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2),
    config={
        "train_batch_size": 8,
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": kept},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": low},
    },
)
weights = {k: p for k, p in engine.module.named_parameters() if k.endswith("weight")}


def norms():
    with deepspeed.zero.GatheredParameters(list(weights.values())):
        return {
            k: float(torch.linalg.matrix_norm(p.detach().double(), 2)) for k, p in weights.items()
        }


callback = SNCallback(engine.module, threshold="1.05x init", idle_every=1, certify_every=2)
before, after, rows = [], [], []
for step in range(8):
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(step))
    x = x.to(torch.bfloat16 if low else torch.float32)
    engine.backward((engine(x) - 3).square().mean())
    engine.step()
    before.append(norms())
    callback.step()
    after.append(norms())
    rows.append({k: dict(v) for k, v in callback.latest.items()})
callback.close()
told = {
    "before": before,
    "after": after,
    "rows": rows,
    "errors": callback.errors,
    "shapes": {x.name: x.shape for x in callback.layers.layers},
}
with open(os.path.join(folder, rank), "w") as file:
    json.dump(told, file)
"""


@pytest.mark.parametrize(
    ("stage", "low", "kept"),
    [(1, True, 0), (2, True, 0), (3, True, 0), (3, False, 0), (3, False, 100_000)],
)
def test_the_whole_weight_is_measured_and_held_on_all_ranks(stage, low, kept, tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    world = {"WORLD_SIZE": str(RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    given = json.dumps([stage, low, kept, str(tmp_path)])
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, given],
            env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank, "DS_ACCELERATOR": "cpu"},
        )
        for rank in map(str, range(RANKS))
    ]
    assert [process.wait(timeout=200) for process in processes] == [0] * RANKS
    here, there = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(RANKS))
    assert here["errors"] == there["errors"] == 0
    assert here["shapes"] == {"0.weight": [33, 16], "2.weight": [5, 33]}
    assert here["rows"][-1] == there["rows"][-1]
    assert here["after"] == there["after"]
    # A bfloat16 weight differs from its master by rounding.
    rounding = 2e-3 if low else 2e-6
    thresholds = {name: row["threshold"] for name, row in here["rows"][-1].items()}
    for step, row in enumerate(here["rows"][1:]):
        for name, exact in here["before"][step].items():
            assert exact * (1 - 1e-3 - rounding) <= row[name]["sigma"] <= exact * (1 + rounding)
            assert here["after"][step][name] <= thresholds[name] * (1.001 + rounding)
    assert min(row[name]["scale"] for row in here["rows"][1:] for name in thresholds) < 0.99
    # What was taken off stays off: the masters were multiplied too.
    for name, limit in thresholds.items():
        growth = [x[name] for x in here["before"]]
        assert max(growth) <= limit * 1.12
