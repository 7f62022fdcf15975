"""bench/gpu.py where there is no GPU: it needs torch and numpy only, and says what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
HIDDEN = ("httpx", "fastapi", "pydantic", "uvicorn", "rich", "plotly", "scipy", "prometheus_client")


def run(code: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (ROOT / "bench", ROOT / "client", ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_it_imports_with_torch_and_numpy_alone() -> None:
    done = run(f"import sys; sys.modules.update(dict.fromkeys({HIDDEN!r})); import gpu")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device to run it on")
def test_without_a_cuda_device_it_says_so_in_one_sentence_and_fails() -> None:
    done = run("import gpu, sys; sys.argv = ['gpu.py']; sys.exit(gpu.main())")
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "needs a CUDA device" in done.stdout
