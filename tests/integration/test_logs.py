"""The logs of real processes: one line per event, known keys, nothing of a user's."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
from typing import Any

import pytest

from tests.control.peers import Api, FakeSidecar, traffic
from tests.integration.harness import Stage
from tests.integration.snapshots import one_experiment, one_target
from tests.integration.waiting import LOOPBACK, free_port, wait_for
from turnout import logs

JSON = ("--log-format", "json", "--log-level", "debug")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
KEYS = {"time", "level", "logger", "event", "error", *logs.FIELDS}
REQUEST_ID = "0b51a4f1-6f5e-4f0e-9a55-7d3f1b8e2c11"


def parsed(output: str) -> list[dict[str, Any]]:
    """Every line of a JSON log."""
    lines = [json.loads(line) for line in output.splitlines()]
    for line in lines:
        assert TIME.fullmatch(line["time"]), line
        assert line["level"] in {"debug", "info", "warning", "error", "critical"}, line
        assert line["event"], line
        assert line.keys() <= KEYS, line
    return lines


def events(lines: list[dict[str, Any]], word: str) -> list[dict[str, Any]]:
    """The lines whose event has this word."""
    return [line for line in lines if word in line["event"]]


async def test_every_line_is_json_when_asked_for(stage: Stage) -> None:
    """Start, a worker's death, operators' commands with their request ids, a rollback, the end."""
    plane = await stage.control(*JSON)
    stage.envoy_dir.mkdir()
    async with Api(plane.address) as api:
        await api.start()
        sidecar = await stage.sidecar(control=plane.address, envoy_admin=False, args=JSON)
        await stage.workers_serve()
        os.kill(sidecar.workers()[0], signal.SIGKILL)
        await wait_for(lambda: "ended with status" in sidecar.output(), "the death is told")
        await api.verb("Pause", request_id=REQUEST_ID)
        await api.verb("Resume")
        async with FakeSidecar(api.channel, "node-2") as other:
            plan = await other.plan()
            other.send_deltas(traffic(plan, {"control": 1900, "v2": 100}, {"v2": 40}))
            await other.until(lambda me: not me.snapshot.experiments, "rollback")
    assert await plane.stop() == 0
    await wait_for(lambda: "no control plane" in sidecar.output(), "the loss is told")
    assert await sidecar.stop() == 0

    of_control = parsed(plane.output())
    assert events(of_control, f"listening on {plane.address}")
    (paused,) = events(of_control, "PauseExperiment")
    assert paused["request_id"] == REQUEST_ID
    assert (paused["tenant"], paused["experiment"]) == ("risk", "fraud-v2")
    (rollback,) = events(of_control, "rollback: ")
    assert rollback["level"] == "warning"
    assert (rollback["tenant"], rollback["experiment"]) == ("risk", "fraud-v2")
    of_sidecar = parsed(sidecar.output())
    (death,) = events(of_sidecar, "ended with status -9")
    assert death["worker"] == 0
    assert {(line["tenant"], line["node"]) for line in of_sidecar if "worker" not in line} == {
        ("risk", "node-1")
    }
    assert events(of_sidecar, "connected to the control plane")
    assert [line["version"] for line in events(of_sidecar, "serve the snapshot")]


async def test_no_line_is_written_when_requests_are_served(stage: Stage) -> None:
    """Not at the lowest level either; and no unit id is anywhere."""
    v1, v2 = await stage.pod("v1"), await stage.pod("v2")
    await stage.envoy(one_target(v1))
    served = one_experiment(v1, v2, {"v2": 0.3}, version=2)
    sidecar = await stage.sidecar(snapshot=served, args=JSON)
    await stage.workers_serve()
    await stage.enrols(user="secret-unit-0")
    before = len(parsed(sidecar.output()))
    answers = await stage.users([f"secret-unit-{n}" for n in range(200)])
    assert not any(answer.failed for answer in answers)
    assert any(answer.variant for answer in answers)
    assert await sidecar.stop() == 0
    lines = parsed(sidecar.output())
    assert len(lines) - before < 10, lines
    assert "secret-unit" not in sidecar.output()


async def test_refusal_is_a_line_when_the_log_is_json(stage: Stage) -> None:
    """A process that cannot start says so in the form that was asked for."""
    store = f"sqlite:{stage.directory}/nowhere/turnout.db"
    listen = f"{LOOPBACK}:{free_port()}"
    output = await stage.run(
        "control", "--listen", listen, "--store", store, "--log-format", "json", code=1
    )
    (line,) = parsed(output)
    assert line["level"] == "error"
    assert "nowhere" in line["event"]


async def test_level_leaves_out_what_is_less_serious(stage: Stage) -> None:
    plane = await stage.control("--log-level", "error")
    async with Api(plane.address) as api:
        await api.start()
        await api.verb("Rollback", reason="bad")
    assert await plane.stop() == 0
    assert plane.output() == f"turnout control: listening on {plane.address}\n"


async def test_unknown_format_is_a_usage_error(stage: Stage) -> None:
    output = await stage.run("control", "--log-format", "xml", code=2)
    assert "'text', 'json'" in output


@pytest.fixture
def restored() -> Any:
    """The root logger as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in logs.OURS:
        logging.getLogger(name).setLevel(logging.NOTSET)
    logging.captureWarnings(capture=False)


@pytest.mark.parametrize("form", list(logs.LogFormat))
@pytest.mark.usefixtures("restored")
def test_event_is_one_line_when_its_text_has_many(form: logs.LogFormat) -> None:
    """Line breaks, a terminal's escapes and a traceback stay inside the line."""
    stream = io.StringIO()
    logs.configure(logs.Style(form), {"node": "n\n1"}, stream=stream)
    logger = logging.getLogger("some.module")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logger.exception("a\r\nb\x1b[31m\u2028c", extra={"tenant": "t", "unit_id": "secret"})
    output = stream.getvalue()
    assert len(output.splitlines()) == 1
    assert "secret" not in output
    assert "\x1b" not in output
    if form == logs.LogFormat.JSON:
        (line,) = parsed(output)
        assert line["event"] == "a\r\nb\x1b[31m\u2028c"
        assert line["error"].endswith("ValueError: first\nsecond")
        assert (line["tenant"], line["node"]) == ("t", "n\n1")


@pytest.mark.usefixtures("restored")
def test_field_is_refused_when_no_line_may_have_it() -> None:
    with pytest.raises(ValueError, match="unit_id"):
        logs.configure(logs.PLAIN, {"unit_id": "x"})
