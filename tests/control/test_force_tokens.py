"""Force tokens: their text by the shared vectors, who gets one, and `turnout force`."""

from __future__ import annotations

import base64
import json
import shlex
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from control.forcetokens import mint
from tests.control.clirunning import turnout
from tests.control.clishell import Shell
from tests.control.peers import EXPERIMENT, PARENT, Api, experiment, reason, violations
from tests.control.resources import EXPERIMENT as EXPERIMENT_FILE
from tests.control.resources import TARGET as TARGET_FILE
from turnout import contract
from turnout.v1alpha1 import experiment_service_pb2 as service
from turnout.v1alpha1.common_pb2 import Session, Unit
from turnout.v1alpha1.experiment_service_pb2 import ForceToken

CODE = grpc.StatusCode
VECTORS = json.loads(Path("tests/vectors/tokens.json").read_text())
KEY = bytes(range(32))


def payload(token: str) -> list[str]:
    """What a token says."""
    version, text, _ = token.split(".")
    assert version == contract.FORCE_VERSION
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().split(";")


async def create(api: Api, name: str = EXPERIMENT, **fields: object) -> ForceToken:
    """Ask for a token; `ttl_s` in seconds."""
    ttl_s = fields.pop("ttl_s", None)
    request = service.CreateForceTokenRequest(name=name, **fields)  # type: ignore[arg-type]
    if ttl_s is not None:
        request.ttl.seconds = int(str(ttl_s))
    return await api.experiments.CreateForceToken(request)


@pytest.mark.parametrize("case", VECTORS["force_good"]["cases"], ids=lambda case: case["name"])
def test_token_is_the_vectors_when_it_is_minted(case: dict[str, str]) -> None:
    token = mint(
        bytes.fromhex(case["key"]),
        tenant=case["tenant"],
        experiment=case["experiment"],
        variant=case["variant"],
        unit=bytes.fromhex(case["unit"]),
        issued_s=int(case["issued"]),
        expires_s=int(case["expires"]),
    )
    assert token == case["token"]


@pytest.mark.parametrize(
    ("key", "unit", "seconds", "what"),
    [
        (b"x" * 31, b"", 60, "31 bytes"),
        (KEY, b"u" * 257, 60, "257 bytes"),
        (KEY, b"", 0, "good for 0 s"),
        (KEY, b"", 24 * 3600 + 1, "good for 86401 s"),
    ],
)
def test_mint_refuses_when_something_is_out_of_bounds(
    key: bytes, unit: bytes, seconds: int, what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        mint(
            key,
            tenant="t",
            experiment="e",
            variant="v",
            unit=unit,
            issued_s=1,
            expires_s=1 + seconds,
        )


def test_token_fits_the_header_when_everything_in_it_is_as_long_as_can_be() -> None:
    label = "a" * 63
    token = mint(
        KEY,
        tenant=label,
        experiment=label,
        variant=label,
        unit=b"\xff" * 256,
        issued_s=10**10,
        expires_s=10**10 + 1,
    )
    assert len(token) <= contract.FORCE_TOKEN_BYTES_MAX


async def test_token_says_what_was_asked_and_the_trail_who_asked(api: Api) -> None:
    await api.start()
    made = await create(api, variant="v2", unit="user-1", ttl_s=120)
    tenant, name, variant, issued, expires, unit = payload(made.token)
    assert (tenant, name, variant) == ("risk", "fraud-v2", "v2")
    assert int(expires) - int(issued) == 120
    assert made.expire_time.seconds == int(expires)
    assert base64.urlsafe_b64decode(unit + "=" * (-len(unit) % 4)) == b"user-1"
    events = (await api.audit.ListAuditEvents(service.ListAuditEventsRequest(parent=PARENT))).events
    event = events[0]
    assert (event.method, event.resource) == ("ExperimentService.CreateForceToken", EXPERIMENT)
    assert json.loads(event.after_json)["forceToken"]["variant"] == "v2"
    assert made.token not in event.after_json
    assert "user-1" not in event.after_json


async def test_token_is_for_its_bearer_and_an_hour_when_nothing_else_is_said(api: Api) -> None:
    await api.start()
    *_, issued, expires, unit = payload((await create(api, variant="control")).token)
    assert (int(expires) - int(issued), unit) == (3600, "")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"variant": "v9"}, "variant"),
        ({}, "variant"),
        ({"variant": "v2", "ttl_s": 59}, "ttl"),
        ({"variant": "v2", "ttl_s": 86_401}, "ttl"),
        ({"variant": "v2", "ttl_s": -1}, "ttl"),
        ({"variant": "v2", "unit": "u" * 257}, "unit"),
    ],
)
async def test_token_is_refused_by_field_when_it_cannot_be(
    api: Api, fields: dict[str, object], field: str
) -> None:
    await api.start()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await create(api, **fields)  # type: ignore[arg-type]
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert list(violations(refused.value)) == [field]


@pytest.mark.parametrize(
    ("unit", "value", "rule"),
    [
        (Unit(header="x-user-id"), " a", "begin or end with blanks"),
        (Unit(header="x-user-id"), "a\nb", "control characters"),
        (Unit(cookie="uid"), "a;b", "semicolon"),
        (Unit(session=Session()), "alice", "32 digits of 0-9 a-f"),
        (Unit(session=Session()), "A" * 32, "32 digits of 0-9 a-f"),
        (Unit(random=True), "alice", "is random"),
    ],
)
async def test_token_is_refused_when_no_request_can_have_its_unit(
    api: Api, unit: Unit, value: str, rule: str
) -> None:
    resource = experiment()
    resource.spec.unit.CopyFrom(unit)
    await api.create_target()
    await api.create(resource)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await create(api, variant="v2", unit=value)
    assert refused.value.code() is CODE.INVALID_ARGUMENT
    assert rule in violations(refused.value)["unit"]


async def test_token_is_refused_when_the_experiment_does_not_run(api: Api) -> None:
    await api.create_target()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await create(api, f"{PARENT}/experiments/other", variant="v2")
    assert refused.value.code() is CODE.NOT_FOUND
    await api.create(experiment())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await create(api, variant="v2")
    assert (refused.value.code(), reason(refused.value)) == (
        CODE.FAILED_PRECONDITION,
        "EXPERIMENT_NOT_LIVE",
    )
    assert "start it first" in str(refused.value.details())


# -- The command -----------------------------------------------------------------------------------


def test_command_prints_token_and_request_when_it_runs(shell: Shell) -> None:
    shell.apply(TARGET_FILE, EXPERIMENT_FILE)
    assert shell("force", "fraud-v2", "v2").code == 5
    shell("start", "fraud-v2")
    done = shell("force", "fraud-v2", "v2", "--unit", "alice", "--ttl", "24h")
    token, curl, expires, *notes = done.lines
    assert payload(token)[:3] == [shell.tenant, "fraud-v2", "v2"]
    words = shlex.split(curl)
    assert words[:3] == ["curl", "-H", f"x-force-variant: {token}"]
    assert {"host: fraud.risk.svc", "x-user-id: alice"} <= set(words)
    assert words[-1].endswith("/v2/models/fraud")
    moment = datetime.fromtimestamp(int(payload(token)[4]), UTC)
    assert expires == f"Expires {moment:%Y-%m-%dT%H:%M:%SZ}, or when the experiment ends."
    assert notes == []
    assert "for PUT-A-UNIT-HERE" in shell("force", "fraud-v2", "v2").lines[-1]
    assert shell("force", "fraud-v2", "v9").code == 3
    assert shell("force", "nobody", "v2").code == 4
    assert shell("force", "fraud-v2", "v2", "--ttl", "25h").code == 2
    printed = json.loads(shell("force", "fraud-v2", "v2", "-o", "json").out)
    assert set(printed) == {"token", "expireTime"}


def test_command_signs_by_a_key_file_when_there_is_no_control_plane(tmp_path: Path) -> None:
    key = tmp_path / "tenant.key"
    key.write_bytes(KEY)
    done = turnout("force", "fraud-v2", "v2", "--tenant", "risk", "--key-file", key, "--unit", "u")
    token, curl, *_ = done.lines
    assert curl.endswith(" http://127.0.0.1:8080/PUT-THE-PATH-HERE")
    tenant, name, variant, issued, expires, _ = payload(token)
    assert token == mint(
        KEY,
        tenant=tenant,
        experiment=name,
        variant=variant,
        unit=b"u",
        issued_s=int(issued),
        expires_s=int(expires),
    )
    key.write_bytes(KEY[1:])
    assert "host and path are yours to fill in" in done.lines[-1]
    assert "has 31 bytes and is no key" in turnout("force", "a", "b", "--key-file", key).err
    assert turnout("force", "a", "b", "--key-file", tmp_path / "none").code == 1
    assert turnout("force", "a", "B", "--key-file", key).code == 2


def test_command_makes_no_token_for_everybody_when_the_unit_given_is_empty(tmp_path: Path) -> None:
    key = tmp_path / "tenant.key"
    key.write_bytes(KEY)
    done = turnout("force", "fraud-v2", "v2", "--key-file", key, "--unit", "")
    assert (done.code, done.out) == (2, "")
    assert "--unit: is empty: leave it out" in done.err
