"""One JSON object a line: what the server does, and what became of each request. No key, and no prompt unless asked."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

WARNING = logging.WARNING
LOGGER = logging.getLogger("mogu.serve")
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass
class Note:
    """What is remembered of one request while it lasts."""

    request_id: str
    arrived: float
    """Of the event loop's clock, in seconds."""
    more: dict[str, Any] = field(default_factory=dict)
    """Further fields of the log line."""


def request_id(given: str | None) -> str:
    """The client's own, if it is a sane one, else a new one."""
    return given if given is not None and _SANE.fullmatch(given) else uuid.uuid4().hex


class JsonLines(logging.Formatter):
    """Log records as JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """One line; fields of ``extra={"fields": …}`` stand beside the message."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def tell(event: str, level: int = logging.INFO, cause: BaseException | None = None, /, **fields: Any) -> None:
    """Log an event."""
    LOGGER.log(level, event, exc_info=cause, extra={"fields": fields})


def to_stderr() -> None:
    """Write the log of this server, and warnings of uvicorn, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("mogu.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
