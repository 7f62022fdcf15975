"""A real sigma is followed by name: it passes every stop that ARCHITECTURE.md lists."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_architecture import walk

# In a process of its own, because a profile function is set for every thread of it.
JOB = """
import json, socket, sys, threading, time

seen = set()

def note(frame, event, _):
    if event == "call":
        seen.add((frame.f_code.co_filename, frame.f_code.co_qualname))

threading.setprofile(note)
sys.setprofile(note)

import httpx
import torch
import uvicorn
from torch import nn

from snc_client import SNCallback
from snc_service.app import create_app
from snc_service.settings import Settings

store, found = sys.argv[1:]
listener = socket.create_server(("127.0.0.1", 0))
url = f"http://127.0.0.1:{listener.getsockname()[1]}"
app = create_app(Settings(store=f"sqlite:///{store}"))
server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
serving = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
serving.start()
while not server.started:
    time.sleep(0.01)

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 6))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
callback = SNCallback(
    model, optimizer=optimizer, threshold="1.01x init", certify_every=2, url=url, run="walk"
)
for _ in range(8):
    optimizer.zero_grad()
    (model(torch.randn(16, 12)) - 3).square().mean().backward()
    optimizer.step()
callback.close(timeout=60)
metrics = httpx.get(f"{url}/metrics").text
server.should_exit = True
serving.join(60)
sys.setprofile(None)
shown = 'snc_sigma{run="walk",layer="0.weight"}' in metrics
with open(found, "w") as file:
    json.dump({"seen": sorted(seen), "shown": shown}, file)
"""


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="code objects have qualified names from 3.11"
)
@pytest.mark.timeout(170)
def test_a_sigma_passes_every_stop_on_its_way_to_the_metrics(tmp_path):
    found = tmp_path / "found.json"
    command = [sys.executable, "-c", JOB, str(tmp_path / "snc.db"), str(found)]
    subprocess.run(command, check=True, timeout=160)
    told = json.loads(found.read_text())
    assert told["shown"]
    seen = {(Path(file), name) for file, name in told["seen"]}
    missed = [stop.function for stop in walk() if (stop.path, stop.function) not in seen]
    assert missed == []
