"""Envoy's watched files on disk.

Owns when a file is written: only when its text changed, whole, by a rename into the watched
directory from outside of it (Envoy reloads at every rename that it sees there). Refuses to decide
what they say. Every function blocks: call it off the event loop.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sidecar.disk import write_atomic
from sidecar.envoyfiles import CLUSTERS_FILE, FILTER_FILE, ROUTES_FILE
from sidecar.errors import CannotRunError

_FILES: Final = (CLUSTERS_FILE, ROUTES_FILE, FILTER_FILE)


class EnvoyDirError(CannotRunError):
    """Envoy's directory cannot be used; the message says why."""


class EnvoyDir:
    """The directory given by --envoy-dir."""

    def __init__(self, path: Path) -> None:
        """Make the watched directories and read what they hold.

        Raises:
            EnvoyDirError: The directory cannot be made or written.
        """
        self.path = path
        self._texts: dict[str, str] = {}
        # What each file looked like when we last knew its text.
        self._seen: dict[str, tuple[int, int]] = {}
        try:
            for name in _FILES:
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                self._read(name)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise _unusable(path, f"{why}: {getattr(error, 'filename', None) or name}") from error
        if not os.access(path, os.W_OK | os.X_OK):
            raise _unusable(path, "this user may not write there")

    def write(self, name: str, text: str) -> bool:
        """Give a file this text; whether it had another before.

        Raises:
            OSError: The disk is full, read-only, ...; the old file is untouched.
        """
        if self._texts.get(name) == text:
            return False
        # Staged in a directory that nobody watches, on the same file system.
        staged = self.path / f".{Path(name).name}.staged"
        write_atomic(staged, text.encode())
        staged.rename(self.path / name)
        self._texts[name] = text
        self._seen[name] = self._look(name)
        return True

    def changed_by_others(self) -> bool:
        """Whether somebody else gave a file another text since we last knew it.

        `turnout envoy bootstrap` run beside a sidecar writes the same files anew.
        """
        changed = False
        for name in _FILES:
            if self._look(name) != self._seen[name]:
                before = self._texts.get(name)
                self._read(name)
                changed |= self._texts.get(name) != before
        return changed

    def _read(self, name: str) -> None:
        self._seen[name] = self._look(name)
        self._texts.pop(name, None)
        if (self.path / name).exists():
            self._texts[name] = (self.path / name).read_text()

    def _look(self, name: str) -> tuple[int, int]:
        try:
            status = (self.path / name).stat()
        except FileNotFoundError:
            return (0, 0)
        return (status.st_ino, status.st_mtime_ns)


def _unusable(path: Path, why: str) -> EnvoyDirError:
    remedy = "--envoy-dir must be a directory that this user may write, of this sidecar alone"
    return EnvoyDirError(f"Envoy's directory {path} cannot be used: {why}; {remedy}")
