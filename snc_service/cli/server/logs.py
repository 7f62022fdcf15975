"""The log of ``snc serve``: one line of JSON per record on stderr, with any names in it escaped."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime, timezone
from typing import Any

from snc_service.api.security.access_log import REQUEST_ID
from snc_service.auth import hide_secrets


class JsonLines(logging.Formatter):
    """A record as one JSON object: in ASCII, without line breaks, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        at = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "at": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = REQUEST_ID.get()
        if request_id is not None:
            line["request_id"] = request_id
        line |= getattr(record, "request", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return hide_secrets(json.dumps(line, default=str))


def start(*, access_log: bool) -> None:
    """Send records of level WARNING or above, and requests if wanted, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("snc.access").setLevel(logging.INFO if access_log else logging.WARNING)
