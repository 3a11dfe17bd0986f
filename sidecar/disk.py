"""What a supervisor keeps on disk: the last good snapshot, tombstones, the tenant's key, gates.

Owns the files of the state directory, their permissions and the order of writes: a reader finds
either the old file or the new one, whole, and a damaged one is noticed and its predecessor used.
Refuses to judge a snapshot. Every function blocks: call it off the event loop.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sidecar import unsent
from sidecar.errors import CannotRunError
from sidecar.snapshotfile import CorruptSnapshot, decode, encode
from sidecar.unsent import CorruptUnsent, Unsent
from turnout.contract import TENANT_KEY_BYTES

SNAPSHOT_FILE: Final = "snapshot"
TOMBSTONES_FILE: Final = "tombstones"
KEY_FILE: Final = "tenant.key"
GATES_FILE: Final = "gates.json"
ENVOY_FILE: Final = "envoy.json"
LOCK_FILE: Final = "lock"
UNSENT_DIR: Final = "unsent"
PREVIOUS_SUFFIX: Final = ".prev"
_PRIVATE: Final = 0o600


class StateError(CannotRunError):
    """The state directory cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read of a checksummed file.

    Attributes:
        payload: None = there is no good one.
        problems: A sentence per damaged file that was passed over.
    """

    payload: bytes | None
    problems: tuple[str, ...] = ()


def write_atomic(
    path: Path, data: bytes, *, mode: int = 0o644, keep_previous: bool = False
) -> None:
    """Replace a file by one that is whole and on the disk.

    Args:
        path: Its directory exists.
        data: The whole content.
        mode: Permissions of the new file.
        keep_previous: Keep the replaced file beside it as PATH.prev.

    Raises:
        OSError: The disk is full, read-only, ...; the old file is untouched.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            # A second name, then two renames: at no moment is there no file at `path`.
            spare = path.with_name(f".{path.name}.{os.getpid()}.prev")
            spare.unlink(missing_ok=True)
            spare.hardlink_to(path)
            spare.rename(path.with_name(path.name + PREVIOUS_SUFFIX))
        fresh.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


class StateDir:
    """The files of one sidecar; only one supervisor may write them at a time."""

    def __init__(self, path: Path, *, lock: bool = True) -> None:
        """Create the directory if need be, prove that it can be written, lock it.

        Args:
            path: Of the directory.
            lock: Else it is only read, until `lock`.

        Raises:
            StateError: Not a directory, not writable, or in use.
        """
        self.path = path
        self.locked = False
        # Names of the files of `unsent` that are ours to remove.
        self._unsent: set[str] = set()
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o750)
            self._lock = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT, _PRIVATE)
        except OSError as error:
            raise StateError(_explain(path, error)) from error
        if lock:
            try:
                self.lock()
            except StateError:
                os.close(self._lock)
                raise

    def lock(self) -> None:
        """Become the one that writes.

        Raises:
            StateError: In use, or not writable.
        """
        probe = self.path / ".probe"
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.locked = True
            write_atomic(probe, b"", mode=_PRIVATE)
        except BlockingIOError as error:
            raise StateError(
                f"state directory {self.path} is in use by another sidecar: stop it, or give this "
                "one a --state-dir of its own"
            ) from error
        except OSError as error:
            raise StateError(_explain(self.path, error)) from error
        probe.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another supervisor use the directory."""
        os.close(self._lock)

    def save_snapshot(self, payload: bytes) -> None:
        """Keep a snapshot that serves; the one before stays as .prev."""
        write_atomic(self.path / SNAPSHOT_FILE, encode(payload), keep_previous=True)

    def load_snapshot(self) -> Loaded:
        """The newest snapshot that is whole."""
        return self._load(SNAPSHOT_FILE)

    def save_tombstones(self, payload: bytes) -> None:
        """Keep an encoded TombstoneSet."""
        write_atomic(self.path / TOMBSTONES_FILE, encode(payload), keep_previous=True)

    def load_tombstones(self) -> Loaded:
        """The newest TombstoneSet that is whole."""
        return self._load(TOMBSTONES_FILE)

    def save_key(self, key: bytes) -> None:
        """Keep the tenant's key, readable by this user only."""
        write_atomic(self.path / KEY_FILE, key, mode=_PRIVATE)

    def load_key(self) -> bytes | None:
        """The tenant's key, if a whole one is there."""
        try:
            key = (self.path / KEY_FILE).read_bytes()
        except OSError:
            return None
        return key if len(key) == TENANT_KEY_BYTES else None

    def own_key(self) -> bytes:
        """The key on disk, or a fresh one that is now on disk (stand-alone)."""
        key = self.load_key()
        if key is None:
            key = new_key()
            self.save_key(key)
        return key

    def save_json(self, name: str, value: Any) -> None:
        """Keep a small fact that may be lost."""
        write_atomic(self.path / name, json.dumps(value, sort_keys=True).encode())

    def load_json(self, name: str) -> Any:
        """A small fact; None when it is missing or damaged."""
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError):
            return None

    def load_unsent(self, tenant: str) -> tuple[list[Unsent], list[str]]:
        """Batches that an earlier supervisor could not send, oldest first; and what is wrong."""
        found: list[Unsent] = []
        problems: list[str] = []
        strangers: Counter[str] = Counter()
        directory = self.path / UNSENT_DIR
        for path in sorted(directory.iterdir()) if directory.is_dir() else ():
            if path.name.startswith("."):
                # Half a file of somebody who was killed.
                path.unlink(missing_ok=True)
                continue
            try:
                batch = unsent.decode(path.read_bytes())
            except OSError as error:
                problems.append(f"{path} was passed over: {error}")
                continue
            except CorruptUnsent as error:
                problems.append(f"{path} is lost: {error}")
                self._unsent.add(path.name)
                continue
            if batch.tenant != tenant:
                strangers[batch.tenant] += 1
                continue
            self._unsent.add(path.name)
            found.append(batch)
        for name, count in sorted(strangers.items()):
            problems.append(f"{count} batch(es) in {directory} stay there: of tenant {name!r}")
        found.sort(key=lambda one: (one.batch.created_unix_ms, one.batch.seq))
        return found, problems

    def save_unsent(self, batches: Iterable[Unsent]) -> None:
        """Keep batches that are not on disk yet, readable by this user only."""
        directory = self.path / UNSENT_DIR
        for batch in batches:
            if batch.name not in self._unsent:
                directory.mkdir(exist_ok=True, mode=0o700)
                write_atomic(directory / batch.name, unsent.encode(batch), mode=_PRIVATE)
                self._unsent.add(batch.name)

    def drop_unsent(self, batches: Iterable[Unsent]) -> None:
        """Remove all batches but these."""
        for name in self._unsent - {batch.name for batch in batches}:
            (self.path / UNSENT_DIR / name).unlink(missing_ok=True)
            self._unsent.discard(name)

    def _load(self, name: str) -> Loaded:
        problems: list[str] = []
        for candidate in (name, name + PREVIOUS_SUFFIX):
            path = self.path / candidate
            try:
                return Loaded(decode(path.read_bytes()), tuple(problems))
            except FileNotFoundError:
                continue
            except (OSError, CorruptSnapshot) as error:
                problems.append(f"{path} was passed over: {error}")
        return Loaded(None, tuple(problems))


def new_key() -> bytes:
    """A key for unit hashes."""
    return secrets.token_bytes(TENANT_KEY_BYTES)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _explain(path: Path, error: OSError) -> str:
    if error.errno == errno.EROFS:
        reason = "it is on a read-only file system"
    elif error.errno in (errno.EACCES, errno.EPERM):
        reason = "this user may not write there"
    elif error.errno in (errno.EEXIST, errno.ENOTDIR):
        reason = "it is not a directory"
    elif error.errno == errno.ENOSPC:
        reason = "the disk is full"
    else:
        reason = error.strerror or str(error)
    remedy = "free the disk" if error.errno == errno.ENOSPC else "make it writable for this user"
    return (
        f"state directory {path} cannot be used: {reason}: {remedy}, or choose another --state-dir"
    )
