"""The request that `turnout force` prints, read as curl reads it: what the sidecar says to it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from control.commands import forcecurl
from control.commands.snapshot import build
from control.forcetokens import mint
from control.model import read_yaml
from sidecar.explain import Explanation, explain
from turnout.v1alpha1.common_pb2 import Predicate, Unit
from turnout.v1alpha1.snapshot_pb2 import Snapshot
from turnout.v1alpha1.target_pb2 import RequestMatch

KEY = bytes(range(32))
NOW_S = 1_800_000_000
SESSION = "0123456789abcdef" * 2
HEADER = "header: x-user-id"
RESOURCES = """
kind: Target
metadata: {{name: fraud, tenant: risk}}
spec:
  match: {{{match}}}
  baseline: {{upstream: {{address: "v1:8080"}}}}
---
kind: Experiment
metadata: {{name: fraud-v2, tenant: risk}}
spec:
  target: fraud
  unit: {{{unit}}}
  segment: {{all: [{{header: x-never, equals: sent}}]}}
  control: control
  variants:
  - {{name: control}}
  - {{name: v2, upstream: {{address: "v2:8080"}}}}
  steps:
  - canary: {{split: {{v2: 0.01}}, for: 1h}}
"""


def read(curl: str) -> list[tuple[str, bytes]]:
    """The request's headers, pseudo-headers among them, as curl makes them of its words."""
    words = iter(shlex.split(curl))
    assert next(words) == "curl"
    found = {":method": "GET", ":authority": forcecurl.ENVOY}
    for word in words:
        if word == "-H":
            given = next(words)
            name, colon, value = given.partition(":")
            name, value = (name, value) if colon else (given.removesuffix(";"), "")
            assert colon or given.endswith(";")
            name = ":authority" if name == "host" else name
            assert name not in found or name.startswith(":")
            found[name] = value.strip()
        elif word == "-X":
            found[":method"] = next(words)
        elif word == "-I":
            found[":method"] = "HEAD"
        elif word != "-g":
            scheme, _, rest = word.partition("://")
            assert (scheme, rest.startswith(forcecurl.ENVOY)) == ("http", True)
            found[":path"] = rest.removeprefix(forcecurl.ENVOY)
    return [(name, value.encode()) for name, value in found.items()]


def printed(
    directory: Path, match: str, unit: str, value: str, claims: dict[str, str] | None = None
) -> tuple[forcecurl.Printed, Explanation]:
    """What is printed below a token, and what the sidecar says to the request."""
    file = directory / "resources.yaml"
    file.write_text(RESOURCES.format(match=match, unit=unit))
    documents, faults = read_yaml(file.read_bytes())
    assert faults == []
    target, experiment = (document.spec for document in documents)
    token = mint(
        KEY,
        tenant="risk",
        experiment="fraud-v2",
        variant="v2",
        unit=value.encode(),
        issued_s=NOW_S,
        expires_s=NOW_S + 60,
    )
    found = forcecurl.known_target(token, target.match, experiment.unit, value)  # type: ignore[arg-type, union-attr]
    told = explain(
        Snapshot.FromString(build([file])),
        read(found.curl),
        random_unit=lambda: bytes(16),
        now_s=lambda: NOW_S + 1,
        tenant_key=KEY,
        claims=claims,
    )
    return found, told


MATCHES = [
    "pathPrefix: /v2/models/fraud",
    'hosts: ["fraud.risk.svc"]',
    'hosts: ["*.risk.svc"], methods: [POST, PUT]',
    "methods: [HEAD]",
    "modelName: fraud",
    'modelName: fraud, modelVersion: "2"',
    'pathPrefix: /serving, modelName: fraud, modelVersion: "2"',
    "pathPrefix: /v2, modelName: fraud",
    'pathPrefix: "/a{b}[1-2]"',
    "headers: [{header: x-model, in: [fraud, fraud-eu]}, {header: x-key, prefix: abc}]",
    "headers: [{header: x-model, present: true}, {header: x-debug, present: false}]",
    'headers: [{header: x-model, equals: ""}]',
    'headers: [{any: [{all: [{header: a, equals: "1"}, {header: a, equals: "2"}]},'
    ' {not: {any: [{header: b, present: false}, {header: b, equals: "1"}]}}]}]',
    "headers: [{header: a, prefix: ab}, {not: {header: a, in: [ab, ab1]}}]",
    'headers: [{header: cookie, prefix: "tester=1"}]',
]


@pytest.mark.parametrize("match", MATCHES)
def test_request_is_the_targets_whatever_its_match(tmp_path: Path, match: str) -> None:
    found, told = printed(tmp_path, match, HEADER, "user 42")
    assert (told.variant, told.target) == ("v2", "fraud")
    assert found.notes == []


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        (HEADER, "O'Neill & $HOME"),
        ("cookie: uid", "a=b"),
        ("queryParameter: user id", "a b&c=ü+{1}"),
        ("session: {}", SESSION),
        ("session: {cookie: sid}", SESSION),
    ],
)
def test_request_has_the_unit_in_its_place_when_the_token_is_for_one(
    tmp_path: Path, unit: str, value: str
) -> None:
    for match in (MATCHES[0], MATCHES[-1]):
        found, told = printed(tmp_path, match, unit, value)
        assert (told.variant, told.main.forced, found.notes) == ("v2", True, [])


@pytest.mark.parametrize(
    ("unit", "named"),
    [
        (HEADER, "a value of x-user-id"),
        ("cookie: uid", "a value of cookie uid"),
        ("queryParameter: user", "a value of parameter user"),
    ],
)
def test_placeholder_stands_for_the_unit_and_is_said_when_the_token_is_its_bearers(
    tmp_path: Path, unit: str, named: str
) -> None:
    found, told = printed(tmp_path, MATCHES[0], unit, "")
    assert told.variant == "v2"
    assert found.curl.count(forcecurl.UNIT_HERE) == 1
    assert found.notes == [f"Put a unit, {named}, for {forcecurl.UNIT_HERE}."]


@pytest.mark.parametrize("value", ["", "42"])
def test_token_of_the_client_is_asked_for_when_the_unit_is_a_claim(
    tmp_path: Path, value: str
) -> None:
    unit = "jwtClaim: {claim: sub, payloadInMetadata: claims}"
    found, told = printed(tmp_path, MATCHES[0], unit, value)
    assert told.outcome == "NO_UNIT"
    assert "claim sub" + (" is '42'" if value else "") in found.notes[0]
    _, told = printed(tmp_path, MATCHES[0], unit, value, {"sub": "42"})
    assert told.variant == "v2"
    unit = "jwtClaim: {claim: sub, unverified: true, header: x-jwt}"
    found, _ = printed(tmp_path, MATCHES[0], unit, value)
    assert "in header x-jwt" in found.notes[0]


def test_nothing_need_be_sent_when_the_unit_is_drawn(tmp_path: Path) -> None:
    found, told = printed(tmp_path, MATCHES[0], "random: true", "")
    assert (told.variant, found.notes) == ("v2", [])
    found, told = printed(tmp_path, MATCHES[0], "session: {cookie: sid}", "")
    assert told.variant == "v2"
    assert "cookie sid" in found.notes[0]


def test_caller_is_told_when_no_headers_fit_the_match() -> None:
    never = [
        Predicate(header="a", equals="1"),
        Predicate(negated=Predicate(header="a", prefix="1")),
    ]
    assert forcecurl.headers_of(never) is None
    match = RequestMatch(headers=never)
    found = forcecurl.known_target("T", match, Unit(header="x-user-id"), "42")
    assert found.notes == ["Add headers that fit the target's match; none were found here."]


def test_host_path_and_unit_are_the_callers_when_the_target_is_not_known() -> None:
    for value in ("", "alice"):
        found = forcecurl.unknown_target("T", value)
        request = dict(read(found.curl))
        assert request[":authority"].decode() == forcecurl.HOST_HERE
        assert request[":path"].decode() == f"/{forcecurl.PATH_HERE}"
        assert "host and path are yours" in found.notes[0]
        assert (value or "a unit") in found.notes[0]
