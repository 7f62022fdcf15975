"""The reverse proxies of deploy/: real ones, with TLS, in front of a real service."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from feed import Feed
from sandbox import ROOT
from test_prometheus import eventually

from snc_client.demo.service import free_port, serving
from snc_client.sender.http import HttpConnection
from snc_service.settings import Settings
from snc_service.wire import MEDIA_TYPE

DEPLOY = ROOT / "deploy"
NAME = "snc.example"
ADDRESS = "127.0.0.1:8470"

needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin") is None or shutil.which("openssl") is None,
    reason="nginx is missing: install the Debian packages nginx-light and openssl",
)
needs_caddy = pytest.mark.skipif(
    shutil.which("caddy") is None, reason="caddy is missing: install the Debian package caddy"
)


@contextmanager
def running(command: list[str], log: Path, **env: str) -> Iterator[None]:
    with (
        log.open("wb") as file,
        subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | env
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.fixture
def backend(tmp_path, monkeypatch) -> Iterator[str]:
    """Yield host:port of a service that knows the proxy's name."""
    monkeypatch.setenv("SNC_ALLOWED_HOSTS", NAME)
    with serving(tmp_path / "snc.db", free_port(0)) as url:
        yield url.removeprefix("http://")


class Elsewhere(httpx.HTTPTransport):
    """Connects to a port of this machine for the name in the URL, and checks the certificate."""

    def __init__(self, port: int, certificate: Path) -> None:
        super().__init__(verify=ssl.create_default_context(cafile=str(certificate)))
        self.port = port

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = request.url.host
        request.url = request.url.copy_with(host="127.0.0.1", port=self.port)
        return super().handle_request(request)


def check(port: int, certificate: Path) -> None:
    """Ask for everything that a proxy can break."""
    url = f"https://{NAME}"
    with httpx.Client(transport=Elsewhere(port, certificate), base_url=url) as client:
        answer = eventually(lambda: asked(client, "/readyz"))
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert client.get("/").status_code == 200
        made = client.post("/api/v1/runs", json={"run": "behind"}, headers={"Origin": url})
        assert made.status_code == 201, made.text  # the service knows itself by its public name
        foreign = {"Origin": "https://elsewhere.example"}
        assert client.post("/api/v1/runs", json={}, headers=foreign).status_code == 403
        too_large = client.post(
            "/api/v1/runs/behind/batches",
            content=b" " * (Settings().max_body_bytes + 1),
            headers={"Content-Type": MEDIA_TYPE},
        )
        assert too_large.status_code == 413
    connection = HttpConnection(url, None, Elsewhere(port, certificate))
    assert connection.request("GET", "/runs/behind", b"").status == 200
    connection.close()


def asked(client: httpx.Client, path: str) -> httpx.Response | None:
    try:
        answer = client.get(path)
    except httpx.TransportError:
        return None
    return answer if answer.status_code == 200 else None


def check_stream(port: int, certificate: Path, backend: str) -> None:
    """Each update comes when it happens, not when a buffer is full."""
    feed = Feed(f"http://{backend}", "streamed", ["a"])
    with (
        httpx.Client(
            transport=Elsewhere(port, certificate), base_url=f"https://{NAME}", timeout=20
        ) as client,
        client.stream("GET", "/api/v1/runs/streamed/stream") as stream,
    ):
        ids = (line for line in stream.iter_lines() if line.startswith("id:"))
        first = next(ids)
        sender = threading.Thread(target=lambda: feed.send([1], sigma=1.0))
        sender.start()
        assert next(ids) != first
        sender.join()


def nginx_configuration(folder: Path, backend: str, port: int, plain: int) -> Path:
    """Return a whole configuration around the shipped one, which is for the folder conf.d."""
    certificate(folder)
    text = (DEPLOY / "nginx" / "snc.conf").read_text()
    for old, new in {
        ADDRESS: backend,
        "listen 443": f"listen 127.0.0.1:{port}",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "/etc/ssl/snc/": f"{folder}/",
    }.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "snc.conf").write_text(text)
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = folder / "nginx.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""  # pytest's folders are closed to others
    whole.write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log stderr warn;\n{user}"
        f"events {{}}\nhttp {{ access_log off;\n{temporary}include {folder}/snc.conf; }}\n"
    )
    return whole


def certificate(folder: Path) -> Path:
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 "
        f"-subj /CN={NAME} -addext subjectAltName=DNS:{NAME} "
        f"-keyout {folder}/privkey.pem -out {folder}/fullchain.pem".split(),
        check=True,
        capture_output=True,
    )
    return folder / "fullchain.pem"


@needs_nginx
def test_a_real_nginx_passes_everything_on(backend, tmp_path):
    port, plain = free_port(0), free_port(0)
    whole = nginx_configuration(tmp_path, backend, port, plain)
    nginx = str(shutil.which("nginx", path="/usr/sbin:/usr/bin"))
    checked = subprocess.run([nginx, "-t", "-c", str(whole)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr
    with running([nginx, "-c", str(whole)], tmp_path / "nginx.log"):
        check(port, tmp_path / "fullchain.pem")
        check_stream(port, tmp_path / "fullchain.pem", backend)
        moved = httpx.get(f"http://127.0.0.1:{plain}/x?y=1", headers={"Host": NAME})
        assert (moved.status_code, moved.headers["Location"]) == (308, f"https://{NAME}/x?y=1")


def test_the_proxy_and_the_service_allow_bodies_of_the_same_size():
    nginx = (DEPLOY / "nginx" / "snc.conf").read_text()
    caddy = (DEPLOY / "caddy" / "Caddyfile").read_text()
    most = Settings().max_body_bytes // 2**20
    assert re.findall(r"client_max_body_size (\d+)m;", nginx) == [str(most)]
    assert re.findall(r"max_size (\d+)MiB", caddy) == [str(most)]


@needs_caddy
def test_a_real_caddy_passes_everything_on(backend, tmp_path):
    port = free_port(0)
    shipped = (DEPLOY / "caddy" / "Caddyfile").read_text()
    whole = tmp_path / "Caddyfile"
    # A certificate of its own instead of a public one, and nothing outside these ports and folders.
    options = "local_certs\n skip_install_trust\n auto_https disable_redirects\n admin off\n"
    options += f"https_port {port}\n default_bind 127.0.0.1\n"
    for old, new in {"grace_period 5s\n": f"grace_period 1s\n{options}", ADDRESS: backend}.items():
        assert old in shipped
        shipped = shipped.replace(old, new)
    whole.write_text(shipped)
    env = {"XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    env["SNC_SITE"] = f"{NAME}:{port}"
    arguments = ["--config", str(whole), "--adapter", "caddyfile"]
    checked = subprocess.run(
        ["caddy", "validate", *arguments], env=os.environ | env, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    with running(["caddy", "run", *arguments], tmp_path / "caddy.log", **env):
        root = tmp_path / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        eventually(root.exists)
        check(port, root)
        check_stream(port, root, backend)


@needs_caddy
def test_the_shipped_caddyfile_is_formatted_as_caddy_does():
    done = subprocess.run(
        ["caddy", "fmt", str(DEPLOY / "caddy" / "Caddyfile")], capture_output=True, text=True
    )
    assert done.stdout == (DEPLOY / "caddy" / "Caddyfile").read_text()
