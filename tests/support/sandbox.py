"""Commands of an image or of a page, executed below a folder instead of /, where that is possible.

No container engine is needed, and nothing of the machine is touched: the places that the commands
name are moved below ``root``, and the port to a free one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from snc_client.demo.service import free_port

ROOT = Path(__file__).resolve().parents[2]
MOVED = re.compile(
    r"(?<![\w.])/(?=(opt/snc|var/lib/snc|var/backups|src|etc/(snc|systemd|nginx|caddy|prometheus))\b)"
)
LIMIT_SECONDS = 240


@dataclass
class Stage:
    """What one FROM of a Dockerfile leaves behind."""

    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0:0"
    cmd: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)


class Sandbox:
    """A folder that stands for /. ``stages`` are those of the Dockerfiles built in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port(0)
        self.stages: list[Stage] = []
        self.ran: set[str] = set()
        root.chmod(0o755)  # the image's user must be able to read what root built
        (root / "bin").mkdir()
        (root / "bin" / "python").symlink_to(interpreter())

    def moved(self, text: str) -> str:
        """Return ``text`` as it is meant here."""
        text = MOVED.sub(f"{self.root}/", text).replace("8470", str(self.port))
        return text.replace("0.0.0.0", "127.0.0.1")  # a test listens on loopback only

    def environment(self, stage: Stage | None = None) -> dict[str, str]:
        own = {} if stage is None else {k: self.moved(v) for k, v in stage.env.items()}
        own.pop("PIP_NO_CACHE_DIR", None)  # an image must be small, a test fast
        path = f"{self.root}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
        return {"PATH": path, "HOME": str(self.root), "SNC_PORT": str(self.port)} | own

    def run(self, command: str, cwd: Path | None = None, stage: Stage | None = None) -> str:
        """Run a shell command; return what it printed. Fails the test if it fails."""
        done = subprocess.run(
            ["bash", "-euc", self.moved(command)],
            cwd=cwd or self.root,
            env=self.environment(stage),
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        self.ran.add(command.replace(" --quiet", ""))
        return done.stdout

    def source(self) -> Path:
        """Return the copy of the project that the image was made of."""
        return self.root / "src"

    def start(self, stage: Stage, **env: str) -> subprocess.Popen[str]:
        """Start the image's CMD as the image's user."""
        user, group = (int(number) for number in stage.user.split(":"))
        return subprocess.Popen(
            [self.moved(word) for word in stage.cmd],
            cwd=self.moved(stage.workdir),
            env=self.environment(stage) | env,
            user=user,
            group=group,
            extra_groups=[],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def build(self, dockerfile: Path) -> Stage:
        """Execute a Dockerfile; return its last stage."""
        for word, rest in instructions(dockerfile.read_text()):
            self._execute(word, rest)
        return self.stages[-1]

    def _execute(self, word: str, rest: str) -> None:
        if word == "FROM":
            self.stages.append(Stage())
            return
        stage = self.stages[-1]
        if word == "ENV":
            stage.env |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif word == "WORKDIR":
            stage.workdir = rest
            Path(self.moved(rest)).mkdir(parents=True, exist_ok=True)
        elif word == "RUN":
            (self.root / "opt").mkdir(exist_ok=True)
            self.run(rest, Path(self.moved(stage.workdir)), stage)
        elif word == "COPY":
            self._copy(shlex.split(rest), Path(self.moved(stage.workdir)))
        elif word == "USER":
            stage.user = rest
        elif word == "HEALTHCHECK":
            stage.healthcheck = json.loads(rest[rest.index("CMD") + 3 :])
        elif word == "CMD":
            stage.cmd = json.loads(rest)
        else:
            assert word in ("EXPOSE", "VOLUME"), f"the sandbox cannot {word}"

    def _copy(self, words: list[str], workdir: Path) -> None:
        *sources, target = [word for word in words if not word.startswith("--")]
        if any(word.startswith("--from=") for word in words):
            assert sources == [target]  # both stages stand in one folder
            assert Path(self.moved(target)).exists()
            return
        for source in sources:
            place = workdir / target / source if target == "./" else workdir / target
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, place, ignore=ignored)
            else:
                shutil.copy(ROOT / source, place)


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile as (word, rest)."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    found = [line.strip().split(None, 1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest) for word, rest in found]


def interpreter() -> str:
    """Return a Python that any user may run: not one in somebody's home."""
    system = "/usr/bin/python3"
    return system if os.access(system, os.X_OK) else sys.executable
