"""The page: static ES modules, read and compressed once, then served from memory.

All files except the page itself have a URL with a digest of their content, so browsers cache them
for good and never mix two releases. URLs in the page are relative, so it works behind a proxy that
adds a prefix.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request, Response

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
        "form-action 'none'",
    )
)
PAGE_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
STATIC = Path(__file__).parent / "static"
FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Asset:
    """One file in both encodings. ``digest`` is of the plain bytes."""

    body: bytes
    gzipped: bytes
    media_type: str
    digest: str

    @classmethod
    def of(cls, body: bytes, suffix: str) -> Asset:
        """Compress ``body`` once. Cost: about 25 ms per MB."""
        digest = hashlib.sha256(body).hexdigest()[:16]
        return cls(body, gzip.compress(body, 6, mtime=0), MEDIA_TYPES[suffix], digest)


@dataclass(frozen=True)
class PageFiles:
    """The page and its files: ``assets`` by path below ``/ui/``."""

    index: Asset
    assets: Mapping[str, Asset]


@cache
def load_page() -> PageFiles:
    """Read the static files; 50 ms at the first call."""
    own = {
        file.relative_to(STATIC).as_posix(): Asset.of(file.read_bytes(), file.suffix)
        for file in STATIC.rglob("*")
        if file.is_file()
    }
    index = own.pop("index.html")
    # One digest for all modules, because they import each other by relative URL.
    together = "".join(f"{name} {own[name].digest}\n" for name in sorted(own))
    folder = hashlib.sha256(together.encode()).hexdigest()[:16]
    assets = {f"{folder}/{name}": asset for name, asset in own.items()}
    # Preload all modules: a browser finds an import only after it has read the importing module.
    modules = sorted(name for name in own if name.endswith(".js"))
    links = "\n  ".join(f'<link rel="modulepreload" href="ui/{{own}}/{name}">' for name in modules)
    text = index.body.decode().replace("{preloads}", links)
    text = text.replace("{own}", folder)
    return PageFiles(Asset.of(text.encode(), ".html"), assets)


def mount(app: FastAPI) -> None:
    """Serve the page at ``/`` and its files below ``/ui/``.

    The Content-Security-Policy is set on the answer of the page itself, where browsers read it.
    """
    page = load_page()

    @app.get("/", include_in_schema=False)
    def index(request: Request) -> Response:
        return _answer(page.index, request, PAGE_HEADERS | {"Cache-Control": "no-cache"})

    @app.get("/ui/{path:path}", include_in_schema=False)
    def asset(path: str, request: Request) -> Response:
        if path not in page.assets:
            raise HTTPException(404, f"the page has no file {path!r}: reload it")
        headers = {"Cache-Control": FOREVER, "X-Content-Type-Options": "nosniff"}
        return _answer(page.assets[path], request, headers)


def _answer(asset: Asset, request: Request, headers: dict[str, str]) -> Response:
    """Return the asset in an encoding that the client accepts, or 304 if it has the asset."""
    packed = "gzip" in request.headers.get("accept-encoding", "")
    etag = f'"{asset.digest}{"-gzip" if packed else ""}"'
    headers = headers | {"ETag": etag, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(
        asset.gzipped if packed else asset.body, media_type=asset.media_type, headers=headers
    )
