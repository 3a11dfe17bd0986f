"""How a new sidecar takes over from the one that serves, without a gap.

Owns the conversation between the two supervisors, over a Unix socket beside the workers' (one line
of JSON each way). Refuses to move any state: the state directory is what both versions understand,
and it changes hands with its lock.

    new                              old
    who it is, what it wants   ->    is it about the same sockets and state?
    (its workers get ready)    <-    yes
    freeze                     ->    leaves the config stream and Envoy's files alone, writes all
    (its workers take sockets) <-    frozen
    end                        ->    its workers drain; last counts to the disk; lets go of the lock
    (takes the lock)           <-    (closes)

Whichever dies in the middle, the other serves on: the old one takes its sockets again when the new
one is gone before "end", the new one takes a lock that nobody holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self

from sidecar.listen import Listen
from turnout import __version__

_LOG = logging.getLogger(__name__)

SUFFIX: Final = ".takeover"
_LINE_BYTES_MAX: Final = 16 * 1024
_ANSWER_S: Final = 5.0
# A new sidecar that froze the old one and is then silent for this long is taken for hung.
PATIENCE_S: Final = 20.0
_CREDENTIALS: Final = struct.Struct("3i")


class HandOverError(RuntimeError):
    """It cannot be handed over; the message says why."""


class Claim(NamedTuple):
    """What two sidecars must have in common to take over from each other.

    Attributes:
        listen: The workers' address.
        state_dir: Resolved; "" = none.
    """

    listen: str
    state_dir: str

    @classmethod
    def of(cls, listen: Listen, state_dir: Path | None) -> Self:
        """Of one sidecar's options."""
        resolved = "" if state_dir is None else str(state_dir.resolve())
        address = f"unix:{listen.path.resolve()}" if listen.path is not None else str(listen)
        return cls(address, resolved)

    def differs(self, other: Claim) -> str:
        """Why the other's is not the same; "" = it is."""
        if self.listen != other.listen:
            return f"this one listens on {self.listen}"
        if self.state_dir != other.state_dir:
            return f"this one's state directory is {self.state_dir or 'none'}"
        return ""


def socket_of(listen: Listen) -> Path | None:
    """Where to ask for it; None = TCP ports cannot be handed over."""
    return None if listen.path is None else listen.path.with_name(f".{listen.path.name}{SUFFIX}")


# -- The new one ----------------------------------------------------------------------------------


class Predecessor:
    """The sidecar that serves, as the new one sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A conversation that was agreed to; use `find`."""
        self._reader = reader
        self._writer = writer

    @classmethod
    async def find(cls, listen: Listen, claim: Claim) -> Self | None:
        """Ask whoever serves there; None = nobody does.

        Raises:
            HandOverError: It serves something else, or is busy with another.
        """
        path = socket_of(listen)
        if path is None:
            return None
        try:
            reader, writer = await asyncio.open_unix_connection(str(path), limit=_LINE_BYTES_MAX)
        except OSError:
            return None
        one = cls(reader, writer)
        try:
            answer = await one._ask({"take": claim._asdict(), "version": __version__})
        except EOFError:
            one.close()
            return None
        if not answer.get("ok"):
            one.close()
            raise HandOverError(str(answer.get("why", "it did not say why")))
        return one

    async def freeze(self) -> bool:
        """Let it leave config stream, state and Envoy's files alone; False = it died just now.

        Raises:
            HandOverError: It cannot; it serves on.
        """
        try:
            answer = await self._ask({"do": "freeze"}, limit_s=PATIENCE_S)
        except EOFError:
            return False
        if not answer.get("ok"):
            raise HandOverError(str(answer.get("why", "it did not say why")))
        return True

    async def end(self, limit_s: float) -> None:
        """Let it drain and let go of everything; returns when it has, or has died."""
        with contextlib.suppress(EOFError, HandOverError):
            await self._ask({"do": "end"}, limit_s=limit_s)
        self.close()

    def close(self) -> None:
        """Hang up; before `end` that means: serve on."""
        self._writer.close()

    async def _ask(self, message: dict[str, Any], *, limit_s: float = _ANSWER_S) -> dict[str, Any]:
        try:
            _say(self._writer, message)
            async with asyncio.timeout(limit_s):
                return await _hear(self._reader)
        except TimeoutError:
            raise HandOverError(f"it did not answer within {limit_s:g} s") from None
        except OSError as error:
            raise EOFError(str(error)) from error


# -- The old one ----------------------------------------------------------------------------------


class Owner(Protocol):
    """What serves, and can let go of it."""

    async def freeze(self) -> None:
        """Change nothing that both could: config, state, Envoy's files; all is on disk then.

        Raises:
            HandOverError: It cannot; nothing has changed.
        """
        ...

    async def thaw(self) -> None:
        """The new one is gone: take all of it again, the sockets too."""
        ...

    async def give_up(self) -> None:
        """Drain, and let go of everything; returns when it is done."""
        ...


class Door:
    """Where a new sidecar may ask."""

    def __init__(self, listen: Listen, claim: Claim, owner: Owner) -> None:
        """Nothing is opened before `open`."""
        self._path = socket_of(listen)
        self._claim = claim
        self._owner = owner
        self._server: asyncio.Server | None = None
        self._busy = False
        self._given = False

    @property
    def busy(self) -> bool:
        """Whether somebody is taking over, and has not said "end" yet."""
        return self._busy and not self._given

    async def open(self) -> None:
        """Listen, in the place of whoever did before."""
        if self._path is None:
            return
        hidden = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        hidden.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self._serve, str(hidden), limit=_LINE_BYTES_MAX
        )
        hidden.chmod(0o600)
        hidden.rename(self._path)

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            if not self._given and self._path is not None:
                self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if why := self._refuses(writer):
                raise HandOverError(why)
            async with asyncio.timeout(_ANSWER_S):
                asked = await _hear(reader)
            taken = Claim(**asked["take"])
            if why := self._claim.differs(taken):
                raise HandOverError(why)
            self._busy = True
            try:
                await self._converse(reader, writer, str(asked.get("version", "")))
            finally:
                self._busy = False
        except HandOverError as error:
            _LOG.warning("a sidecar that wants to take over is refused: %s", error)
            _say(writer, {"ok": False, "why": str(error)})
        except (EOFError, OSError, TimeoutError, KeyError, TypeError, ValueError) as error:
            _LOG.warning("a sidecar that wanted to take over went away: %s", error or "no answer")
        except asyncio.CancelledError:
            # The loop ends, as this sidecar was told to stop. asyncio would log a traceback.
            _LOG.warning("this sidecar ends: the one that takes over goes on without it")
        finally:
            writer.close()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: str
    ) -> None:
        _LOG.info("a sidecar of version %s gets ready to take over", version)
        _say(writer, {"ok": True})
        await _expect(reader, "freeze")
        await self._owner.freeze()
        try:
            _say(writer, {"ok": True})
            async with asyncio.timeout(PATIENCE_S):
                await _expect(reader, "end")
        except (EOFError, OSError, TimeoutError, ValueError):
            _LOG.error("the sidecar that was taking over is gone: this one serves on")
            await self._owner.thaw()
            return
        _LOG.info("the new sidecar serves: this one drains and ends")
        self._given = True
        await self._owner.give_up()
        _say(writer, {"ok": True})

    def _refuses(self, writer: asyncio.StreamWriter) -> str:
        if self._busy or self._given:
            return "another one is taking over already"
        peer = writer.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
        )
        _, uid, _ = _CREDENTIALS.unpack(peer)
        return "" if uid in (0, os.geteuid()) else f"it runs as user {uid}"


async def _expect(reader: asyncio.StreamReader, what: str) -> None:
    message = await _hear(reader)
    if message.get("do") != what:
        raise ValueError(f"said {message!r}, not {what}")


def _say(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")


async def _hear(reader: asyncio.StreamReader) -> dict[str, Any]:
    """One message.

    Raises:
        EOFError: The other end is gone.
        ValueError: It is not a line of ours.
    """
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the other end is gone")
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message
