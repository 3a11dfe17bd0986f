"""What a test leaves behind is found, said, and made harmless."""

from __future__ import annotations

import asyncio
import subprocess
import time

import grpc.aio
import pytest

from tests.integration.fakecontrol import FakeControl
from tests.integration.harness import Child, Stage
from tests.integration.waiting import DEADLINE_S, POLL_S, free_port
from tests.leaks import LeftBehindError, children, nothing_left


def _sleeping() -> subprocess.Popen[bytes]:
    """A process; between fork and exec it has another's name, or none."""
    left = subprocess.Popen(["sleep", "321"], stdout=subprocess.PIPE)
    deadline_s = time.monotonic() + DEADLINE_S
    while "321" not in children().get(left.pid, "") and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
    return left


def test_process_is_named_and_ended_when_a_test_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.leaks.END_S", 0.0)
    with pytest.raises(LeftBehindError, match="sleep 321"), nothing_left():
        left = _sleeping()
    left.communicate()
    assert left.returncode == -9


def test_process_of_wider_scope_is_let_live_when_a_test_ends() -> None:
    with subprocess.Popen(["sleep", "321"]) as process:
        with nothing_left():
            pass
        assert process.pid in children()
        process.kill()


async def test_servers_and_channels_are_named_when_a_test_leaves_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.leaks.END_S", 0.0)
    fake = FakeControl(free_port())
    with pytest.raises(LeftBehindError, match=r"aio server, made in .*test_leaks"), nothing_left():
        await fake.start()
    await fake.stop()
    with pytest.raises(LeftBehindError, match="aio channel"), nothing_left():
        channel = grpc.aio.insecure_channel(fake.address)
    await channel.close()
    with nothing_left():
        await fake.start()
        async with grpc.aio.insecure_channel(fake.address) as channel:
            await channel.channel_ready()
        await fake.stop()


class _Stubborn(Child):
    async def kill(self, sig: int = 9) -> int:
        await super().kill()
        raise AssertionError("it did not end")


async def test_stage_ends_everything_when_ending_one_part_fails() -> None:
    with nothing_left():
        stage = Stage()
        first = stage._own(Child("first", stage.directory / "1.log"))
        await first.spawn("sleep", "321")
        await stage.fake_control()
        pod = await stage.pod("v1")
        last = stage._own(_Stubborn("last", stage.directory / "2.log"))
        await last.spawn("sleep", "321")
        with pytest.raises(BaseExceptionGroup, match="the stage did not end") as raised:
            await stage.__aexit__(None, None, None)
    assert [str(error) for error in raised.value.exceptions] == ["it did not end"]
    assert not first.running
    assert not stage.directory.exists()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", pod.port)
