"""`make demo` as a visitor runs it: all five acts, and the summary that it leaves."""

from __future__ import annotations

import json
import os
import subprocess

from tests.tidy.repository import ROOT

# At most 5 minutes after installation, on a machine that may be busy.
DEMO_TIMEOUT_S = 420
ZERO_WITHIN_S = 30
KEYS = {
    "name",
    "ok",
    "requests",
    "failed",
    "unstamped",
    "final_state",
    "reason",
    "seconds_to_zero",
    "exposed_requests",
    "variants",
}


def test_demo_plays_every_act_as_it_must() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        ["make", "demo"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    acts = json.loads((ROOT / ".turnout/demo/summary.json").read_text())["acts"]
    assert len(acts) == 5
    assert all(set(act) == KEYS and act["ok"] for act in acts)
    states = [act["final_state"] for act in acts]
    assert states == ["STOPPED", "PROMOTED", "ROLLED_BACK", "ROLLED_BACK", "RUNNING"]
    assert sum(act["requests"] for act in acts) > 10_000
    assert sum(act["failed"] for act in acts) == 0
    for act in acts[2:4]:
        assert act["seconds_to_zero"] <= ZERO_WITHIN_S
        assert act["exposed_requests"] > 0
    assert "accuracy" in acts[3]["reason"].lower()
    for act in (acts[0], acts[1], acts[4]):
        assert act["seconds_to_zero"] is None
        assert act["exposed_requests"] is None
