"""Several experiments on one target through control plane, sidecar and Envoy, told by commands."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from control.commands.forcecurl import ENVOY
from tests.integration.harness import Pod, Request, Stage, wait_for
from tests.integration.waiting import LOOPBACK
from turnout.contract import HEADER_FORCE, HEADER_STAMP

USERS = [f"user-{number}" for number in range(400)]
RESOURCES = """
kind: Holdout
metadata: {{tenant: risk}}
spec: {{fraction: 0.2}}
---
kind: Target
metadata: {{name: fraud, tenant: risk}}
spec:
  match: {{pathPrefix: /v2/models/fraud}}
  baseline: {{upstream: {{address: "{v1}", healthPath: /healthz}}}}
---
kind: Experiment
metadata: {{name: second, tenant: risk}}
spec:
  target: fraud
  unit: {{header: x-user-id}}
  layer: {{name: models, reserve: 0.5}}
  control: control
  variants:
  - {{name: control}}
  - {{name: v2, upstream: {{address: "{v2}", healthPath: /healthz}}}}
  steps:
  - canary: {{split: {{v2: 0.5}}, for: 1h}}
---
kind: Experiment
metadata: {{name: third, tenant: risk}}
spec:
  target: fraud
  unit: {{header: x-user-id}}
  layer: {{name: models, reserve: 0.3}}
  control: control
  variants:
  - {{name: control}}
  - {{name: v3, upstream: {{address: "{v3}", healthPath: /healthz}}}}
  steps:
  - canary: {{split: {{v3: 0.5}}, for: 1h}}
---
kind: Experiment
metadata: {{name: limit, tenant: risk}}
spec:
  target: fraud
  unit: {{header: x-user-id}}
  layer: {{name: limits}}
  control: control
  variants:
  - {{name: control, parameters: {{limit: "100"}}}}
  - {{name: higher, parameters: {{limit: "250"}}}}
  steps:
  - ab: {{split: {{higher: 0.5}}}}
"""


class Got(NamedTuple):
    """What became of one user's request."""

    pod: str
    variants: dict[str, str]  # experiment -> variant, as the pod saw the stamp
    limit: str


async def got(stage: Stage, pods: list[Pod]) -> dict[str, Got]:
    """One request of each user."""
    for pod in pods:
        pod.seen.clear()
    await stage.users(USERS)
    found = {}
    for pod in pods:
        for seen in pod.seen:
            stamp = seen.headers.get(HEADER_STAMP, "")
            parts = [entry.split(";") for entry in stamp.split(",") if entry]
            variants = {part[0]: part[2] for part in parts}
            limit = seen.headers.get("x-param-limit", "")
            found[seen.headers["x-user-id"]] = Got(pod.name, variants, limit)
    assert found.keys() == set(USERS)
    return found


async def settled(stage: Stage, pods: list[Pod], experiments: set[str]) -> dict[str, Got]:
    """What users get when these experiments and no others enrol, twice the same."""
    last: dict[str, Got] = {}

    async def same() -> bool:
        nonlocal last
        before, last = last, await got(stage, pods)
        return before == last and {n for one in last.values() for n in one.variants} == experiments

    await wait_for(same, f"{sorted(experiments)} enrol", timeout_s=60)
    return last


async def sent(stage: Stage, line: str) -> None:
    """Run a printed curl line in a shell, through this stage's Envoy."""
    assert line.count(ENVOY) == 1
    line = line.replace(ENVOY, f"{LOOPBACK}:{stage.port}")
    shell = await asyncio.create_subprocess_shell(f"{line} --silent --show-error --fail")
    assert await asyncio.wait_for(shell.wait(), 30) == 0


async def test_layers_hold_and_end_one_by_one_when_several_experiments_run(stage: Stage) -> None:
    pods = [await stage.pod(name, record=True) for name in ("v1", "v2", "v3")]
    file = stage.directory / "resources.yaml"
    file.write_text(RESOURCES.format(**{pod.name: pod.address for pod in pods}))
    await stage.envoy(files=[file])
    control = await stage.control()
    await stage.sidecar(control=control.address)
    where = ("--control", control.address, "--tenant", "risk")
    await stage.run("apply", "-f", str(file), *where)
    for name in ("second", "third", "limit"):
        await stage.run("start", name, *where)
    first = await settled(stage, pods, {"second", "third", "limit"})

    # Salts are random: the bounds are six standard deviations of 400 users.
    held_out = {user for user, one in first.items() if not one.variants}
    assert 32 <= len(held_out) <= 128
    second = {user for user, one in first.items() if "second" in one.variants}
    third = {user for user, one in first.items() if "third" in one.variants}
    assert not second & third
    assert 100 <= len(second) <= 220
    assert 44 <= len(third) <= 148
    limits = {"control": "100", "higher": "250"}
    for user, one in first.items():
        models = one.variants.get("second", one.variants.get("third", "control"))
        assert one.pod == {"control": "v1"}.get(models, models)
        assert one.limit == ("" if user in held_out else limits[one.variants["limit"]])
    # Independent: half of each arm of one layer has each arm of the other.
    both = sum(first[user].limit == "250" for user in second)
    assert abs(both - len(second) / 2) <= 3 * len(second) ** 0.5

    # A token gives the candidate to somebody of nobody's part of the layer; not to the held out.
    free = next(user for user in USERS if user not in held_out | second | third)
    token, *_ = (await stage.run("force", "second", "v2", *where)).splitlines()
    for user, pod in ((free, "v2"), (min(held_out), "v1")):
        asked = Request(headers={"x-user-id": user, HEADER_FORCE: token})
        (answer,) = await stage.send([asked])
        assert answer.pod == pod
    printed = await stage.run("force", "second", "v2", "--unit", free, *where)
    before = len(pods[1].seen)
    await sent(stage, printed.splitlines()[1])
    assert [seen.headers["x-user-id"] for seen in pods[1].seen[before:]] == [free]

    # One is rolled back: its users go to the baseline, nobody else moves.
    await stage.run("rollback", "second", *where)
    after = await settled(stage, pods, {"third", "limit"})
    for user, one in after.items():
        assert one.limit == first[user].limit
        assert one.pod == ("v1" if user in second else first[user].pod)

    # The other is promoted: everybody gets it, with the parameters of before.
    await stage.run("promote", "third", *where)
    last = await settled(stage, pods, {"limit"})
    assert {one.pod for one in last.values()} == {"v3"}
    assert all(one.limit == first[user].limit for user, one in last.items())
