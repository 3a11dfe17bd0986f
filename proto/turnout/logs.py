"""How both sides write their logs: one line per event, as text or as JSON.

Owns the lines' form and the names of their keys. Refuses keys that are not in `FIELDS`, so that a
unit id, a header or a body cannot get into a line by accident.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Final, NamedTuple, TextIO

# What a line may concern, in the order in which it is written; given by `extra=`.
FIELDS: Final = (
    "tenant",
    "node",
    "worker",
    "experiment",
    "epoch",
    "version",
    "request_id",
    "actor",
)
VALUE_CHARACTERS_MAX: Final = 256
EVENT_CHARACTERS_MAX: Final = 4096
# Libraries tell of every request, and at the lowest level of every statement with its values: what
# is not ours is never heard below a warning.
OURS: Final = ("control", "sidecar", "turnout", "__main__")
_CONTROL: Final = {**{n: f"\\x{n:02x}" for n in (*range(32), 127)}, 10: "\\n", 13: "\\r", 9: "\\t"}
# Line ends to some readers, though not to Python's files.
_BREAKS: Final = {n: f"\\u{n:04x}" for n in (0x85, 0x2028, 0x2029)}


class LogFormat(StrEnum):
    """The form of a line."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least serious events that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Style(NamedTuple):
    """How a process logs; the default is what a person at a terminal wants."""

    format: LogFormat = LogFormat.TEXT
    level: LogLevel = LogLevel.INFO


PLAIN: Final = Style()


def configure(
    style: Style, fields: Mapping[str, int | str] | None = None, *, stream: TextIO | None = None
) -> None:
    """Write the process's log to `stream` (default: standard error).

    Args:
        style: Form and level.
        fields: On every line, unless the line says otherwise; keys of `FIELDS`.
        stream: For tests.

    Raises:
        ValueError: A field that no line may have.
    """
    unknown = set(fields or ()) - set(FIELDS)
    if unknown:
        raise ValueError(f"no such field of a log line: {sorted(unknown)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    form: type[_Json | _Text] = _Json if style.format == LogFormat.JSON else _Text
    handler.setFormatter(form(dict(fields or {})))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = logging.getLevelNamesMapping()[style.level.upper()]
    root.setLevel(max(logging.WARNING, level))
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(capture=True)
    if style.format == LogFormat.JSON:
        sys.excepthook = _log_fault


class _Formatter(logging.Formatter):
    def __init__(self, fields: Mapping[str, int | str]) -> None:
        super().__init__()
        self._fields = fields

    def concerns(self, record: logging.LogRecord) -> dict[str, int | str]:
        """The line's fields that are known, in their order."""
        found = {name: getattr(record, name, self._fields.get(name, "")) for name in FIELDS}
        return {name: _value(value) for name, value in found.items() if value != ""}

    def fault(self, record: logging.LogRecord) -> str:
        """The traceback, "" when there is none."""
        return self.formatException(record.exc_info) if record.exc_info else ""


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage()[:EVENT_CHARACTERS_MAX],
            **self.concerns(record),
        }
        if fault := self.fault(record):
            line["error"] = fault
        return json.dumps(line)


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        event = record.getMessage()[:EVENT_CHARACTERS_MAX]
        parts = [_time(record), record.levelname, f"{record.name}:", _line(event)]
        parts += [f"{name}={_line(str(value))}" for name, value in self.concerns(record).items()]
        if fault := self.fault(record):
            parts.append(f"error={_line(fault)}")
        return " ".join(parts)


def _value(value: object) -> int | str:
    return value if isinstance(value, int) else str(value)[:VALUE_CHARACTERS_MAX]


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _line(text: str) -> str:
    """Escape what would begin a new line or move a terminal's cursor."""
    return text.translate(_CONTROL | _BREAKS)


def _log_fault(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("turnout").critical(
        "ended by a fault: %s", error, exc_info=(kind, error, trace)
    )


def quiet_grpc() -> None:
    """Keep gRPC's own library from writing lines of another form; before it is used."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
