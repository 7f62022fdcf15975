"""The public names of `snc_client`: the list is exact, lazy and typed."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import snc_client
from snc_client.callback import GuardStopped, ThresholdBreached

ROOT = Path(__file__).resolve().parents[2]

PUBLIC_USE = """
import torch
from typing_extensions import assert_type

from snc_client import (
    Action, Certificate, Command, Coverage, GuardSettings, LipschitzBound, Measurement, Policy,
    Reading, SNCallback, SNCError, certify, lipschitz_bound, measure, warm_up,
)

model = torch.nn.Linear(4, 4)
policy = Policy.parse({"entries": [{"pattern": "*", "threshold": 2.0, "action": "cap"}]})
assert_type(policy, Policy)
action: Action = policy.entries[0].action
callback = SNCallback(
    model, policy=policy, guard=GuardSettings(max_rejections=3), schedule=warm_up(10, start=2.0)
)
assert_type(callback.layers, Coverage)
assert_type(callback.take_commands(), list[Command])
reading: Reading = callback.latest["weight"]
assert_type(reading["sigma"], float | None)
assert_type(measure(model), dict[str, Measurement])
assert_type(certify(model.weight, bound=2.0), Certificate)
assert_type(lipschitz_bound(model, torch.ones(1, 4)), LipschitzBound)
try:
    callback.step(loss=0.5)
except SNCError:
    callback.close()
"""


def checked(tmp_path: Path, source: str) -> subprocess.CompletedProcess[str]:
    """Return what mypy in strict mode says of ``source`` as a user's file."""
    file = tmp_path / "training.py"
    file.write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(file)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


def imported_for_type_checkers() -> set[str]:
    """Return the names that ``snc_client/__init__.py`` imports under ``TYPE_CHECKING``."""
    tree = ast.parse(Path(snc_client.__file__).read_text())
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    imports = [n for n in block.body if isinstance(n, ast.ImportFrom)]
    return {alias.asname or alias.name for n in imports for alias in n.names}


def test_the_public_list_is_exactly_what_can_be_imported():
    listed = set(snc_client.__all__)
    assert len(listed) == len(snc_client.__all__)
    assert listed == set(snc_client._MODULES) == imported_for_type_checkers()
    scope: dict[str, object] = {}
    exec("from snc_client import *", scope)
    assert set(scope) - {"__builtins__"} == listed
    assert listed <= set(dir(snc_client))


def test_every_argument_of_the_callback_is_documented_with_its_default_in_order():
    text = inspect.getdoc(snc_client.SNCallback) or ""
    documented = re.findall(r"``(\w+)`` \(", text)
    parameters = list(inspect.signature(snc_client.SNCallback).parameters.values())
    assert documented == [p.name for p in parameters if p.name != "model"]
    written = dict(re.findall(r"``(\w+)`` \((?:``)?([^\s`:;)]+)", text))
    for parameter in parameters:
        if isinstance(parameter.default, bool | int | str | None):
            shown = str(parameter.default).strip('"')
            assert written[parameter.name].strip('"') == shown, parameter.name


def test_a_name_that_is_not_public_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'LayerMonitor'"):
        _ = snc_client.LayerMonitor


def test_names_without_tensors_need_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from snc_client import Action, Command, Policy, SNCError\n"
        "import snc_client.sender, snc_client.replay"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "error", [ThresholdBreached("fc", step=3, sigma=2.0, threshold=1.0), GuardStopped(step=3)]
)
def test_one_base_class_catches_what_stops_a_training(error):
    assert isinstance(error, snc_client.SNCError)
    assert isinstance(error, RuntimeError)


@pytest.mark.timeout(400)
def test_a_typed_program_can_use_the_public_names(tmp_path):
    done = checked(tmp_path, PUBLIC_USE)
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(400)
def test_a_wrong_action_is_an_error_of_types(tmp_path):
    done = checked(tmp_path, 'from snc_client import Action\n\naction: Action = "clip"\n')
    assert done.returncode == 1, done.stdout
    assert "Incompatible types in assignment" in done.stdout
