"""Who loads what: import contracts at run time, and the two installs in bare environments."""

import importlib
import importlib.metadata
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WEB_STACK = ("fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client", "plotly")


def loaded_by(statement: str, names: tuple[str, ...]) -> set[str]:
    """Return which of ``names`` are in sys.modules after ``statement`` in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_wire_loads_numpy_and_nothing_else():
    assert loaded_by("import snc_service.wire", ("numpy", "torch", "httpx", *WEB_STACK)) == {
        "numpy"
    }


def test_the_service_never_loads_torch():
    assert loaded_by("import snc_service.app, snc_service.cli", ("torch", "snc_client")) == set()


def test_the_service_loads_pyarrow_with_the_first_export_of_parquet():
    assert loaded_by("import snc_service.app", ("pyarrow",)) == set()


def test_the_client_never_loads_the_web_stack():
    assert loaded_by("from snc_client import SNCallback", WEB_STACK) == set()


def test_the_client_loads_httpx_only_when_it_sends():
    assert loaded_by("from snc_client import SNCallback", ("httpx",)) == set()


@pytest.mark.parametrize("package", ["snc_client", "snc_service.wire"])
def test_every_exported_name_is_importable(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    return next(folder.glob("spectral_norm_constraint-*.whl"))


def pip(python: str, *arguments: str) -> None:
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def bare_environment(folder: Path, requirement: str) -> str:
    """Return the interpreter of a new environment that holds ``requirement`` and what it pulls."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip(python, "install", requirement)
    return python


def installed(python: str) -> set[str]:
    code = "import importlib.metadata as m; print(*{d.metadata['Name'] for d in m.distributions()})"
    return {name.lower() for name in run(python, code).split()}


def run(python: str, code: str, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | env
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, timeout=60, env=clean, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(400)
def test_the_base_install_imports_the_client_without_the_web_stack(wheel, tmp_path):
    python = bare_environment(tmp_path / "base", str(wheel))
    assert not installed(python) & {"torch", "fastapi", "pydantic", "uvicorn", "plotly"}
    run(python, "import snc_client, snc_client.sender, snc_client.policy")
    # The training image brings its own torch; here it is the one of this environment.
    image = training_image(tmp_path / "image")
    said = run(
        python,
        "import torch, snc_client\n"
        "print(snc_client.measure(torch.diag(torch.tensor([3.0, 4.0]))))\n"
        "callback = snc_client.SNCallback(torch.nn.Linear(4, 4), threshold=1.0)\n"
        "callback.step(); callback.close()",
        PYTHONPATH=str(image),
    )
    assert "4.0" in said


def training_image(folder: Path) -> Path:
    """Return a folder with torch and what torch needs, linked out of this environment."""
    folder.mkdir()
    wanted, seen = ["torch"], set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for requirement in distribution.requires or []:
            if "extra ==" not in requirement:
                wanted.append(
                    requirement.replace(";", " ")
                    .split()[0]
                    .split("[")[0]
                    .rstrip("<>=!~,.0123456789")
                )
        for file in distribution.files or []:
            top = Path(file.parts[0])
            target = Path(str(distribution.locate_file(top)))
            if top.name not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(target)
    return folder


@pytest.mark.timeout(400)
def test_the_service_install_serves_without_torch(wheel, tmp_path):
    python = bare_environment(
        tmp_path / "service", f"spectral-norm-constraint[service] @ {wheel.as_uri()}"
    )
    assert "torch" not in installed(python)
    said = run(
        python,
        SERVE_AND_ASK.format(snc=str(tmp_path / "service" / "bin" / "snc"), folder=str(tmp_path)),
    )
    assert said.split() == ["200", "200", "[]"]


SERVE_AND_ASK = """
import httpx, socket, subprocess, time
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
url = f"http://127.0.0.1:{{port}}"
service = subprocess.Popen(
    ["{snc}", "serve", "--port", str(port), "--store", "sqlite:///{folder}/snc.db"],
    stdout=subprocess.DEVNULL,
)
try:
    for _ in range(200):
        try:
            ready = httpx.get(url + "/readyz")
            break
        except httpx.ConnectError:
            time.sleep(0.1)
    print(ready.status_code, httpx.get(url + "/").status_code)
    print(httpx.get(url + "/api/v1/runs").json()["items"])
finally:
    service.terminate()
    service.wait()
"""
