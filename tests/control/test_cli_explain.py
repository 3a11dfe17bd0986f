"""`turnout explain` live: what the current snapshot says, and who serves it already."""

from __future__ import annotations

import asyncio
import json

from control.server import ControlPlane
from tests.control.clirunning import turnout_process
from tests.control.clishell import Shell
from tests.control.peers import TENANT, Api, FakeSidecar
from tests.control.resources import EXPERIMENT, TARGET
from tests.integration.waiting import wait_for
from turnout.v1alpha1 import config_service_pb2 as config

REQUEST = ("x-user-id: 42", "x-country: DE")


def test_story_follows_the_experiment_when_it_starts_and_is_rolled_back(shell: Shell) -> None:
    nothing = shell("explain", "fraud-v2", *REQUEST)
    assert nothing.code == 4
    assert nothing.err == (
        f"tenant {shell.tenant} has no snapshot yet: apply a target first, or say --tenant\n"
    )
    shell.apply(TARGET, EXPERIMENT)
    draft = shell("explain", "fraud-v2", *REQUEST)
    assert draft.code == 4
    assert "fraud-v2 is no target and no experiment that enrols anybody now" in draft.err
    before = json.loads(shell("explain", "fraud", *REQUEST, "-o", "json").out)
    assert (before["outcome"], before["address"]) == ("NO_EXPERIMENT", "fraud-v1:8080")
    shell("start", "fraud-v2")
    running = json.loads(shell("explain", "fraud-v2", *REQUEST, "-o", "json").out)
    assert (running["outcome"], running["variant"], running["shadow"]) == (
        "STAMPED", "control", "v2",
    )  # fmt: skip
    assert running["notes"] == ["No sidecar is connected: nobody serves this now."]
    shell("rollback", "fraud-v2", "--reason", "too slow for us")
    ended = shell("explain", "fraud-v2", *REQUEST)
    assert ended.code == 4
    assert "fraud-v2 was rolled back: " in ended.err
    assert "too slow for us" in ended.err


async def test_sidecar_is_named_when_it_waits_or_serves_another_version(
    api: Api, sidecar: FakeSidecar, plane: ControlPlane
) -> None:
    await api.start()
    plan = await sidecar.plan()
    sidecar.report.applied_version = sidecar.version - 1
    sidecar.report.gates.add(
        experiment="fraud-v2", epoch=plan.epoch, open=False, waiting_for=["turnout.fraud.v2"]
    )
    sidecar.send(config.StreamRequest(report=sidecar.report))
    words = ("explain", "fraud-v2", "x-user-id: 42", "--tenant", TENANT, "-o", "json")
    place = f"127.0.0.1:{plane.port}"

    async def notes() -> list[str]:
        done = await asyncio.to_thread(turnout_process, *words, "--control", place)
        assert (done.code, done.err) == (0, "")
        found: list[str] = json.loads(done.out)["notes"]
        return found if len(found) > 1 else []

    assert await wait_for(notes, "both notes") == [
        f"Sidecar node-1 serves version {sidecar.version - 1}, not yet {sidecar.version}.",
        "Sidecar node-1 enrols nobody in fraud-v2 yet: it waits for turnout.fraud.v2; the "
        "baseline serves there.",
    ]
