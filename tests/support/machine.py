"""What a test needs of the machine that runs it, and what is said where it is missing."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(tool: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(tool) is None,
        reason=f"{tool} is missing: install the Debian package {package}",
    )


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming the image's user needs root")
