"""timm, where torchvision is built for another torch.

timm imports torchvision, whose build on PyPI is made for the CUDA build of torch. Beside a CPU
build its import fails, and with it whatever looks for it. `make` moves it out of everybody's way,
to the folder ``aside``; only here it is imported, without the operators that it cannot load.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ASIDE = Path(sys.prefix) / "aside"


def timm() -> ModuleType:
    """Return timm; skip the tests of a module where it is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [("ignore", None, Warning, None, 0)])
        if ASIDE.is_dir():
            patch.syspath_prepend(ASIDE)
            patch.setattr(
                torch.library, "register_fake", lambda *_, **__: lambda function: function
            )
        try:
            return pytest.importorskip("timm", reason="install the extra [frameworks] to test timm")
        finally:
            if ASIDE.is_dir():
                for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                    del sys.modules[name]
