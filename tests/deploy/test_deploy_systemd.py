"""The systemd unit, read by systemd itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from machine import needs
from sandbox import ROOT

UNIT = ROOT / "deploy" / "systemd" / "snc.service"


@pytest.fixture
def unit(tmp_path) -> Path:
    """Return the unit with a program that exists, as systemd checks that too."""
    text = UNIT.read_text()
    assert "/opt/snc/bin/snc serve" in text
    path = tmp_path / "snc.service"
    program = tmp_path / "snc"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path.write_text(text.replace("/opt/snc/bin/snc", str(program)))
    return path


def analyzed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60
    )


@needs("systemd-analyze", "systemd")
def test_systemd_understands_the_unit_without_a_word(unit):
    done = analyzed("verify", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


@needs("systemd-analyze", "systemd")
def test_a_wrong_line_in_the_unit_would_be_found(unit):
    unit.write_text(unit.read_text().replace("ProtectHome=", "ProtectHomes="))
    assert "ProtectHomes" in analyzed("verify", str(unit)).stderr


@needs("systemd-analyze", "systemd")
def test_the_unit_is_confined(unit):
    # In tenths of systemd's scale from 0 (safe) to 10: below 2 is what it calls OK.
    done = analyzed("security", "--offline=true", "--threshold=20", str(unit))
    assert done.returncode == 0, done.stdout[-400:]


def test_the_unit_keeps_its_data_where_it_may_write():
    text = UNIT.read_text()
    assert "StateDirectory=snc\n" in text
    assert "Environment=SNC_STORE=sqlite:////var/lib/snc/" in text
