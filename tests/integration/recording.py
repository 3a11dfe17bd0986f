"""What Envoy and a worker say to each other on the worker's socket, as bytes.

Owns a proxy on the path that Envoy connects to. Refuses to understand anything.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

CHUNK_BYTES: Final = 65_536


class Spoken:
    """One connection.

    Attributes:
        client: What Envoy sent.
        server: What the worker sent.
    """

    def __init__(self) -> None:
        self.client = bytearray()
        self.server = bytearray()


class Recorder:
    """A proxy between two Unix sockets that keeps all that passes.

    Attributes:
        connections: In the order in which they were opened.
    """

    def __init__(self, front: Path, back: Path) -> None:
        """Listen on `front`, connect to `back`; nothing happens before `start`."""
        self.connections: list[Spoken] = []
        self._front = front
        self._back = back
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_unix_server(self._serve, str(self._front))

    async def stop(self) -> None:
        """End them all."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            back_reader, back_writer = await asyncio.open_unix_connection(str(self._back))
            spoken = Spoken()
            self.connections.append(spoken)
            try:
                await asyncio.gather(
                    _pump(reader, back_writer, spoken.client),
                    _pump(back_reader, writer, spoken.server),
                )
            finally:
                back_writer.close()
        except (OSError, asyncio.CancelledError):
            pass  # no worker yet, or the end
        finally:
            writer.close()


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray
) -> None:
    while data := await reader.read(CHUNK_BYTES):
        kept += data
        writer.write(data)
        await writer.drain()
    writer.close()
