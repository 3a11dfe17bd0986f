"""A user's own Envoy, patched, splits traffic: their clusters, their routes as the default."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import yaml

from tests.integration.fakecontrol import CountKey
from tests.integration.harness import (
    BIN,
    Pod,
    Request,
    Stage,
    expected_variant,
    one_experiment,
    wait_for,
)
from tests.integration.snapshots import EXPERIMENT
from turnout.v1alpha1.common_pb2 import Session, Unit, Upstream
from turnout.v1alpha1.config_service_pb2 import ROLE_SERVED, ROLE_SHADOW
from turnout.v1alpha1.snapshot_pb2 import ClusterPlan, Snapshot

OWN = """
# My Envoy.
admin: {{address: {{pipe: {{path: {admin}}}}}}}
static_resources:
  listeners:
    - name: web
      address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
      filter_chains:
        - filters:
            - name: envoy.filters.network.http_connection_manager
              typed_config:
                "@type": {type}envoy.extensions.filters.network.http_connection_manager.v3.{hcm}
                stat_prefix: web
                route_config:
                  name: mine
                  virtual_hosts:
                    - name: everything
                      domains: ["*"]
                      routes:
                        - match: {{path: /hello}}
                          direct_response: {{status: 200, body: {{inline_string: hello}}}}
                        - match: {{prefix: /}}
                          route: {{cluster: model-v1, timeout: 30s}}
                http_filters:
                  - name: envoy.filters.http.router
                    typed_config:
                      "@type": {type}envoy.extensions.filters.http.router.v3.Router
  clusters:
    - &model
      name: model-v1
      connect_timeout: 1s
      type: STATIC
      load_assignment:
        cluster_name: model-v1
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {v1}}}}}}}
    - name: model-v2
      connect_timeout: 1s
      type: STATIC
      load_assignment:
        cluster_name: model-v2
        endpoints:
          - lb_endpoints:
              - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {v2}}}}}}}
"""
USERS = [f"u{i}" for i in range(200)]


def own_clusters(snapshot: Snapshot) -> Snapshot:
    """The same plan with the clusters that the user's Envoy has."""
    names = {"control": "model-v1", "v2": "model-v2"}
    for variant in snapshot.experiments[0].variants:
        name = names[variant.name]
        variant.cluster.CopyFrom(ClusterPlan(cluster=name, upstream=Upstream(cluster=name)))
    snapshot.targets[0].baseline.CopyFrom(snapshot.experiments[0].variants[0].cluster)
    return snapshot


async def patched(stage: Stage, text: str, snapshot: Snapshot) -> Path:
    """The user's file, patched with the real command, as the stage's bootstrap."""
    own, out = stage.directory / "own.yaml", stage.directory / "bootstrap.yaml"
    own.write_text(text)
    await stage.run(
        "envoy", "patch", str(own), "--sidecar", f"unix:{stage.socket}", "--workers", "2",
        "--envoy-dir", str(stage.envoy_dir), "-o", str(out),
        "--snapshot", str(stage.snapshot_file(snapshot, "plan")),
    )  # fmt: skip
    return out


async def validate(path: Path) -> str:
    """What Envoy says of a file; AssertionError when it refuses it."""
    process = await asyncio.create_subprocess_exec(
        str(BIN / "envoy"), "--mode", "validate", "-c", str(path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def own_text(stage: Stage, v1: Pod, v2: Pod) -> str:
    names = {"type": "type.googleapis.com/", "hcm": "HttpConnectionManager"}
    return OWN.format(**names, admin=stage.admin, port=stage.port, v1=v1.port, v2=v2.port)


async def test_own_envoy_splits_when_patched() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        snapshot = own_clusters(one_experiment(v1, v2, {"v2": 0.3}))
        path = await patched(stage, own_text(stage, v1, v2), snapshot)
        await validate(path)
        await stage.run(
            "envoy", "lint", str(path), "--snapshot", f"{stage.directory}/plan.snapshot"
        )
        envoy = await stage.start_envoy()
        await stage.sidecar(snapshot=snapshot)
        await stage.enrols()
        answers = await stage.users(USERS)
        wanted = {user: expected_variant(snapshot, user) for user in USERS}
        pods = {"control": "v1", "v2": "v2"}
        seen = [(a.variant, a.pod) for a in answers if a.variant]
        assert len(seen) > len(USERS) / 2
        for user, answer in zip(USERS, answers, strict=True):
            assert answer.pod == (pods[wanted[user]] if answer.variant else "v1")
            assert answer.variant in (wanted[user], "")
        assert Counter(variant for variant, _ in seen)["v2"] > 20

        # Requests beside the target never ask the sidecar, and a client cannot choose.
        started = (await envoy.stats("http.web.ext_proc.turnout."))["streams_started"]
        hello = await stage.send([Request(path="/hello"), Request(path="/v2/models/other")])
        assert [a.status for a in hello] == [200, 200]
        assert (await envoy.stats("http.web.ext_proc.turnout."))["streams_started"] == started


async def test_own_envoy_serves_its_default_when_the_sidecar_is_away() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        snapshot = own_clusters(one_experiment(v1, v2, {"v2": 0.5}))
        await patched(stage, own_text(stage, v1, v2), snapshot)
        await stage.start_envoy()
        evil = {"x-user-id": "u", "x-turnout-upstream": "model-v2", "x-variant": "v2"}
        answers = await stage.send([Request(headers=evil)] * 5)
        assert [(a.status, a.pod, a.variant) for a in answers] == [(200, "v1", "")] * 5


async def test_patch_changes_nothing_when_done_twice() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        snapshot = own_clusters(one_experiment(v1, v2, {"v2": 0.5}))
        once = (await patched(stage, own_text(stage, v1, v2), snapshot)).read_text()
        twice = (await patched(stage, once, snapshot)).read_text()
        assert twice == once
        clusters = yaml.safe_load(once)["static_resources"]["clusters"]
        assert [c["name"] for c in clusters] == ["model-v1", "model-v2", "turnout_workers"]


async def test_candidates_come_by_address_when_the_bootstrap_has_no_cds() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        snapshot = own_clusters(one_experiment(v1, v2, {"v2": 0.5}))
        mixed = one_experiment(v1, v2, {"v2": 0.5}).experiments[0].variants[1].cluster
        snapshot.experiments[0].variants[1].cluster.CopyFrom(mixed)
        await patched(stage, own_text(stage, v1, v2), snapshot)
        await stage.start_envoy()
        await stage.sidecar(snapshot=snapshot)
        await stage.enrols()
        answers = await stage.users(USERS)
        assert {a.pod for a in answers if a.variant == "v2"} == {"v2"}


async def test_a_promotion_takes_effect_although_the_default_route_is_the_users() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        snapshot = own_clusters(one_experiment(v1, v2, {"v2": 0.5}))
        await patched(stage, own_text(stage, v1, v2), snapshot)
        await stage.start_envoy()
        promoted = own_clusters(one_experiment(v1, v2, {"v2": 0.5}))
        promoted.targets[0].baseline.CopyFrom(promoted.experiments[0].variants[1].cluster)
        del promoted.experiments[:]
        await stage.sidecar(snapshot=promoted)

        async def v2_serves() -> bool:
            return [a.pod for a in await stage.users(["u"])] == ["v2"]

        await wait_for(v2_serves, "the new baseline serves")
        answers = await stage.users(USERS)
        assert sum(a.pod == "v2" for a in answers) > len(USERS) / 2
        assert {(a.status, a.variant) for a in answers} == {(200, "")}
        await stage.kill_sidecar()
        assert [a.pod for a in await stage.users(["u"])] == ["v1"]


async def test_accounts_are_complete_when_the_envoy_is_the_users() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1"), await stage.pod("v2")
        fake = await stage.fake_control()
        snapshot = own_clusters(one_experiment(v1, v2, {"v2": 0.3}, shadow=("v2", 1.0)))
        await patched(stage, own_text(stage, v1, v2), snapshot)
        await stage.start_envoy()
        await stage.sidecar(control=fake.address)
        fake.push(snapshot)
        await fake.serving(snapshot)
        await stage.enrols(user="probe")
        v2.status = 500
        answers = await stage.users(USERS)
        stamped = Counter(a.variant for a in answers if a.variant)

        def folded() -> bool:
            served = fake.total("requests")
            errors = fake.total("errors")
            return (
                served[key("control", ROLE_SERVED)] >= stamped["control"]
                and errors[key("v2", ROLE_SERVED)] == stamped["v2"]
                and errors[key("v2", ROLE_SHADOW)] > 0
            )

        await wait_for(folded, "everything is folded")
        # A copy that crashes is the candidate's as a shadow, never control's.
        assert fake.total("errors")[key("control", ROLE_SERVED)] == 0
        # What goes by while the sidecar is dead, by Envoy's own count, under the user's prefix.
        before = sum(fake.unstamped().values())
        await stage.kill_sidecar()
        await stage.users(["u"] * 20)
        await stage.sidecar(control=fake.address)
        await wait_for(lambda: sum(fake.unstamped().values()) >= before + 20, "all are counted")


def key(variant: str, role: int) -> CountKey:
    return CountKey(EXPERIMENT, 1, variant, role)


async def test_own_envoy_tells_the_cookie_of_a_session_and_finds_models_when_patched() -> None:
    async with Stage() as stage:
        v1, v2 = await stage.pod("v1", record=True), await stage.pod("v2", record=True)
        session = Unit(session=Session(cookie="sid"))
        snapshot = own_clusters(one_experiment(v1, v2, {"v2": 0.5}, unit=session))
        # Its own route has the prefix /: patched routes must be narrower, by path and by header.
        snapshot.targets[0].ClearField("path_prefix")
        snapshot.targets[0].model_name = "fraud"
        path = await patched(stage, own_text(stage, v1, v2), snapshot)
        plan = f"{stage.directory}/plan.snapshot"
        await stage.run("envoy", "lint", str(path), "--snapshot", plan)
        envoy = await stage.start_envoy()
        await stage.sidecar(snapshot=snapshot)
        await stage.enrols()
        token = {"x-force-variant": "a token"}
        by_header = Request("/predict", {"seldon-model": "fraud", **token})
        asked = [Request("/v1/models/fraud:predict", token), by_header]

        async def issued() -> list[str]:
            """Cookies of answers, when no answer came too late to have one."""
            answers = await stage.send(asked)
            return [a.headers["set-cookie"] for a in answers if a.variant and a.pod]

        cookies = await wait_for(lambda: _all_of(issued, len(asked)), "both requests are stamped")
        for cookie in cookies:
            pair = cookie.partition(";")[0]
            first, again = await stage.send([asked[0]._replace(headers={"cookie": pair})] * 2)
            assert "set-cookie" not in first.headers
            assert len({answer.variant for answer in (first, again) if answer.variant}) <= 1
        assert all("x-force-variant" not in s.headers for pod in (v1, v2) for s in pod.seen)
        sent = "http.web.ext_proc.turnout.stream_msgs_sent"
        before = await envoy.stats(sent)
        beside = [Request("/predict"), Request("/v2/models/other/infer"), Request("/hello")]
        assert {answer.status for answer in await stage.send(beside)} == {200}
        assert before == await envoy.stats(sent) != {}


async def _all_of(asking: Callable[[], Awaitable[list[str]]], count: int) -> list[str] | None:
    found = await asking()
    return found if len(found) == count else None
