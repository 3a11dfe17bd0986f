"""Envoy's routes and the sidecar's plan must mean the same by a target's match."""

from __future__ import annotations

import itertools

import yaml

from sidecar import envoyfiles
from sidecar.plan import Plan
from sidecar.predicates import REPEATED
from tests.integration.client import CONNECTIONS
from tests.integration.harness import Request, Stage, one_target, wait_for
from turnout.v1alpha1.common_pb2 import Predicate
from turnout.v1alpha1.snapshot_pb2 import Snapshot, TargetPlan

KEY = bytes(32)
# The largest list that the rules allow.
LARGE = [f"{i:03d}" + "\u00e9" * 126 for i in range(256)]
MANY = [f"merchant.{i}" for i in range(255)] + ["DE"]


def _header(name: str, **leaf: object) -> Predicate:
    values = leaf.pop("values", None)
    predicate = Predicate(header=name, **leaf)  # type: ignore[arg-type]
    if isinstance(values, list):
        predicate.in_values.extend(values)
    return predicate


def _targets() -> list[TargetPlan]:
    country = _header("x-country", values=["DE", "FR"])
    no_beta = Predicate(negated=_header("x-beta", equals="1"))
    either = Predicate(any=[_header("x-a", present=True), _header("x-b", prefix="pre")])
    nested = Predicate(
        negated=Predicate(all=[_header("x-a", present=True), Predicate(negated=country)])
    )
    large = _header("x-country", values=LARGE)
    many = _header("x-country", values=MANY)
    return [
        TargetPlan(name="any", hosts=["*"], path_prefix="/"),
        TargetPlan(name="any-deep", path_prefix="/v2/models"),
        TargetPlan(name="exact", hosts=["a.risk.svc"], path_prefix="/v2"),
        TargetPlan(name="exact-post", hosts=["a.risk.svc"], path_prefix="/v2", methods=["POST"]),
        TargetPlan(name="suffix", hosts=["*.risk.svc", "b.test"], path_prefix="/v2/models/x"),
        TargetPlan(name="wide", hosts=["*.svc"], path_prefix="/v2", methods=["GET", "PUT"]),
        TargetPlan(name="country", hosts=["b.test"], path_prefix="/v2/h", headers=[country]),
        TargetPlan(name="no-beta", hosts=["c.test"], path_prefix="/v2/h", headers=[no_beta]),
        TargetPlan(name="either", hosts=["d.test"], path_prefix="/v2/h", headers=[either, no_beta]),
        TargetPlan(name="nested", hosts=["E.test"], path_prefix="/v2/h", headers=[nested]),
        TargetPlan(name="many", hosts=["f.test"], path_prefix="/v2/h", headers=[many]),
        TargetPlan(name="joined", hosts=["h.test"], headers=[_header("x-country", equals="DE,FR")]),
        TargetPlan(name="large", hosts=["i.test"], headers=[large]),
        TargetPlan(name="present", hosts=["g.test"], headers=[_header("x-a", present=False)]),
        TargetPlan(name="model", hosts=["m.test"], model_name="iris.v1"),
        TargetPlan(name="version", hosts=["m.test"], model_name="iris.v1", model_version="2"),
        TargetPlan(name="hides", hosts=["m.test"], path_prefix="/v2/models/iris"),
        TargetPlan(name="mounted", hosts=["m.test"], path_prefix="/ns/", model_name="iris.v1"),
        TargetPlan(name="post", hosts=["n.test"], model_name="m", methods=["POST"],
                   headers=[either]),
        TargetPlan(name="below", hosts=["n.test"], model_name="m", path_prefix="/v2/models/m/x"),
    ]  # fmt: skip


def _requests() -> list[Request]:
    hosts = ["a.risk.svc", "A.Risk.svc:8080", "x.risk.svc", "risk.svc", ".risk.svc", "y.svc"]
    hosts += ["a.risk.svc:", "a.risk.svc:x", "a.risk.svc:80:80", "x.risk.svc:y.svc"]
    paths = ["/", "/v2", "/v2x", "/v2/models/x?q=/v2/h", "/v2/models"]
    routed = [
        Request(path, {}, b"", method, host)
        for host, path, method in itertools.product([*hosts, "b.test"], paths, ["GET", "POST"])
    ]
    headers: list[dict[str, str | bytes | list[str | bytes]]] = [
        {},
        {"x-country": "DE"},
        {"x-country": "de"},
        {"x-country": ["DE", "FR"]},
        {"x-country": ["DE", "XX"]},
        {"x-country": ["XX", "DE"]},
        {"x-country": "DE,FR"},
        {"x-country": LARGE[200].encode()},
        {"x-country": LARGE[200][:-1].encode()},
        {"x-beta": ["1", "0"]},
        {"x-beta": ["0", "1"]},
        {"x-b": ["pre", "x"]},
        {"x-b": ["x", "pre"]},
        {"x-country": "merchant.7"},
        {"x-country": "merchantX7"},
        {"x-beta": "1"},
        {"x-beta": "0", "x-a": ""},
        {"x-beta": ""},
        {"x-a": "1"},
        {"x-a": "1", "x-country": "FR"},
        {"x-b": "prefix"},
        {"x-b": "pre", "x-beta": "1"},
        {"x-b": b"\xff\xfe"},
    ]
    stems = ["/v2/models/iris.v1", "/v1/models/iris.v1", "/v2/models/irisXv1", "/v2/models/m", ""]
    tails = ["", "/", "/infer", ":predict", "/versions/2", "/versions/2/x", "/versions/2:predict",
             "/versions/22", "/x", "/xy", "?/versions/2", "%2f", "/%ff"]  # fmt: skip
    named: list[dict[str, str | bytes | list[str | bytes]]] = [
        {},
        {"mm-model-id": "iris.v1"},
        {"seldon-model": ["other", "iris.v1"], "x-model-version": "2"},
        {"x-model-version": "2"},
        {"x-model-name": "IRIS.v1"},
        {"x-gateway-model-name": "m", "x-a": ""},
    ]
    models = [
        Request(mount + stem + tail, given, b"", method, host)
        for mount, stem, tail, given in itertools.product(["", "/ns"], stems, tails, named)
        for host, method in (("m.test", "GET"), ("n.test", "GET"), ("n.test", "POST"))
        if (mount + stem + tail).startswith("/")
    ]
    hosts = [f"{letter}.test" for letter in "bcdefghi"]
    judged = [Request("/v2/h", given, b"", "GET", host) for host in hosts for given in headers]
    return routed + judged + models


def _planned(plan: Plan, request: Request) -> str:
    headers = {
        ":authority": request.host.encode(),
        ":path": request.path.encode(),
        ":method": request.method.encode(),
    }
    for name, given in request.headers.items():
        values = [given] if isinstance(given, str | bytes) else given
        raw = [value.encode() if isinstance(value, str) else value for value in values]
        headers[name] = REPEATED.join(raw)
    target = plan.match(headers)
    return target.name if target is not None else "none"


def _named(snapshot: Snapshot) -> str:
    """The real routes, but that each answers with its own name."""
    document = yaml.safe_load(envoyfiles.documents(snapshot, enabled=()).rds)
    for host in document["resources"][0]["virtual_hosts"]:
        for route in host["routes"]:
            route.pop("route", None)
            name = route["name"].split("/")[1]
            route["direct_response"] = {"status": 200, "body": {"inline_string": name}}
    return yaml.safe_dump(document, default_style='"')


async def test_envoy_and_plan_agree_on_the_target_when_matches_overlap() -> None:
    async with Stage() as stage:
        pod = await stage.pod("v1")
        await stage.envoy(one_target(pod))
        snapshot = one_target(pod)
        baseline = snapshot.targets[0].baseline
        del snapshot.targets[:]
        for target in _targets():
            target.baseline.CopyFrom(baseline)
            target.timeout.FromSeconds(1)
            snapshot.targets.append(target)
        plan = Plan.build(snapshot, tenant_key=KEY, dead={}, open_gates=None, slots={})
        stage.write(envoyfiles.ROUTES_FILE, _named(snapshot))

        async def loaded() -> bool:
            # On every connection that is used below: each of Envoy's threads hears of it alone.
            answers = await stage.send([Request("/", host="any.other")] * CONNECTIONS)
            return all(answer.body == b"any" for answer in answers)

        await wait_for(loaded, "Envoy has the new routes")
        requests = _requests()
        answers = await stage.send(requests)
        chosen = [answer.body.decode() for answer in answers]
        planned = [_planned(plan, request) for request in requests]
        differing = [
            (request, envoy, ours)
            for request, envoy, ours in zip(requests, chosen, planned, strict=True)
            if envoy != ours
        ]
        assert differing == []
        assert len(set(chosen)) >= 17
