"""A keep-alive HTTP/1.1 client for one server, over TCP or a Unix socket.

Small on purpose: the demo must count what a client sees, so nothing here retries, redirects or
hides an error.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

_HEAD_BYTES_MAX: Final = 256 * 1024


class Reply(NamedTuple):
    """An answer: status, headers (lower-case names, last value wins) and body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One connection, opened at the first request and again after an error.

    Args:
        address: HOST:PORT, or `unix:PATH`.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        host: str = "localhost",
        timeout_s: float = 10.0,
    ) -> Reply:
        """Send one request and wait for the whole answer.

        Raises:
            OSError: No connection, or it broke. (`TimeoutError` is one.)
        """
        lines = [f"{method} {path} HTTP/1.1", f"host: {host}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        message = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await self._connected()
                writer.write(message)
                return await self._reply(reader)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            self.close()
            raise ConnectionResetError(str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Drop the connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            if self._address.startswith("unix:"):
                self._reader, self._writer = await asyncio.open_unix_connection(
                    self._address.removeprefix("unix:"), limit=_HEAD_BYTES_MAX
                )
            else:
                host, _, port = self._address.rpartition(":")
                self._reader, self._writer = await asyncio.open_connection(
                    host, int(port), limit=_HEAD_BYTES_MAX
                )
        return self._reader, self._writer

    async def _reply(self, reader: asyncio.StreamReader) -> Reply:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split(" ", 2)[1])
        headers = {}
        for line in head[1:-2]:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = await self._chunks(reader)
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Reply(status, headers, body)

    async def _chunks(self, reader: asyncio.StreamReader) -> bytes:
        parts = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        while (await reader.readline()).strip():
            pass
        return b"".join(parts)
