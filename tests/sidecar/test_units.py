"""Where units come from, and what is none."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from sidecar.units import Request, Source, Taken, source_of
from tests.sidecar.samples import request
from turnout.envoy.ext_proc_pb2 import ProcessingRequest
from turnout.v1alpha1.common_pb2 import JwtClaim, Session, Unit


def no_chance() -> bytes:
    raise AssertionError("no chance was needed")


def take(source: Source, *, path: bytes = b"/", encoded: bytes = b"", **headers: bytes) -> Taken:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return source.take(Request(named, None, path, encoded), no_chance)


# -- Query ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "several"),
    [
        (b"/?id=u1", b"u1", False),
        (b"/?a=b&id=u1&c=d", b"u1", False),
        (b"/?id=u1&id=u2", b"u1", True),
        (b"/?id=", b"", False),
        (b"/?id", b"", False),
        (b"/?ID=u1", b"", False),
        (b"/?xid=u1&idx=u2", b"", False),
        (b"/?id=a%20b+c", b"a b c", False),
        (b"/?i%64=u1", b"u1", False),
        (b"/?id=%ff%FE", b"\xff\xfe", False),
        (b"/?id=%zz%4", b"%zz%4", False),
        (b"/?id=a=b?c", b"a=b?c", False),
        (b"/?id=u1#id=u2", b"u1", False),
        (b"/#?id=u1", b"", False),
        (b"/id=u1", b"", False),
        (b"/?", b"", False),
        (b"", b"", False),
    ],
)
def test_query_parameter_is_the_unit(path: bytes, value: bytes, several: bool) -> None:
    assert take(source_of(Unit(query_parameter="id")), path=path) == Taken(value, several)


# -- Sessions -------------------------------------------------------------------------------------


def test_session_is_the_cookies_when_it_has_our_form() -> None:
    source = source_of(Unit(session=Session()))
    good = b"0123456789abcdef" * 2
    assert take(source, cookie=b"turnout-session=" + good) == Taken(good)
    named = source_of(Unit(session=Session(cookie="sid")))
    assert take(named, cookie=b"turnout-session=x; sid=" + good) == Taken(good)


def test_session_is_the_first_of_our_form_when_another_stands_before_it() -> None:
    """A stray one of a longer path comes first, and ours can never replace it."""
    source = source_of(Unit(session=Session()))
    good, other = b"0123456789abcdef" * 2, b"f" * 32
    for cookies in ((b"bad", good), (good, b"bad"), (b"", b"bad", good, other)):
        cookie = b"; ".join(b"turnout-session=" + value for value in cookies)
        assert take(source, cookie=cookie) == Taken(good, several=True)
    found = source.take(
        Request({"cookie": b"turnout-session=a; turnout-session=b"}, None, b"/", b""),
        lambda: bytes(16),
    )
    assert found == Taken(b"0" * 32, issued=True)


@pytest.mark.parametrize("cookie", [b"", b"turnout-session=0123", b"turnout-session=" + b"G" * 32])
def test_session_is_issued_when_there_is_none_of_our_form(cookie: bytes) -> None:
    source = source_of(Unit(session=Session()))
    found = source.take(Request({"cookie": cookie}, None, b"/", b""), lambda: bytes(range(16)))
    assert found == Taken(bytes(range(16)).hex().encode(), issued=True)


# -- Claims ---------------------------------------------------------------------------------------

CLAIMS: list[tuple[str, Any, bytes]] = [
    ("sub", {"sub": "u1"}, b"u1"),
    ("sub", {"sub": "\N{SNOWMAN}"}, "\N{SNOWMAN}".encode()),
    ("sub", {"sub": 12345}, b"12345"),
    ("sub", {"sub": -1}, b"-1"),
    ("sub", {"sub": 5.0}, b"5"),
    ("sub", {"sub": 2**53 - 1}, b"9007199254740991"),
    ("sub", {"sub": 2**53}, b""),  # as a double it is 2**53 + 1, too
    ("sub", {"sub": 2**54}, b""),
    ("sub", {"sub": 5.5}, b""),
    ("sub", {"sub": True}, b"true"),
    ("sub", {"sub": False}, b"false"),
    ("sub", {"sub": ""}, b""),
    ("sub", {"sub": None}, b""),
    ("sub", {"sub": ["u1"]}, b""),
    ("sub", {"sub": {"a": "b"}}, b""),
    ("sub", {}, b""),
    ("realm.user", {"realm": {"user": "u1"}}, b"u1"),
    ("realm.user", {"realm.user": "u1"}, b"u1"),
    ("realm.user", {"realm.user": "u1", "realm": {"user": "u2"}}, b"u1"),
    ("realm.user", {"realm.user": None, "realm": {"user": "u2"}}, b""),
    ("realm.user", {"realm": {"realm.user": "u1"}}, b""),
    ("https://example.com/user_id", {"https://example.com/user_id": "42"}, b"42"),
    ("https://example.com/user_id", {"https://example": {"com/user_id": "42"}}, b"42"),
    ("realm.user", {"realm": "user"}, b""),
    ("a.b.c", {"a": {"b": {"c": 1}}}, b"1"),
]


@pytest.mark.parametrize(("claim", "payload", "value"), CLAIMS)
def test_verified_claim_is_the_unit(claim: str, payload: dict[str, Any], value: bytes) -> None:
    message = ProcessingRequest.FromString(request())
    metadata = message.metadata_context.filter_metadata["envoy.filters.http.jwt_authn"]
    metadata.update({"jwt": payload, "other": {"sub": "evil"}})
    unit = Unit(jwt_claim=JwtClaim(claim=claim, payload_in_metadata="jwt"))
    assert take(source_of(unit), encoded=message.SerializeToString()) == Taken(value)


def test_verified_claim_is_no_unit_when_nobody_verified_a_token() -> None:
    unit = Unit(jwt_claim=JwtClaim(claim="sub", payload_in_metadata="jwt"))
    assert take(source_of(unit), encoded=request()) == Taken(b"")
    message = ProcessingRequest.FromString(request())
    message.metadata_context.filter_metadata["other"].update({"jwt": {"sub": "evil"}})
    assert take(source_of(unit), encoded=message.SerializeToString()) == Taken(b"")


def jwt(payload: Any) -> bytes:
    body = base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=")
    return b"eyJhbGciOiJub25lIn0." + body + b"."


@pytest.mark.parametrize(("claim", "payload", "value"), CLAIMS)
def test_unverified_claim_is_the_unit(claim: str, payload: Any, value: bytes) -> None:
    source = source_of(Unit(jwt_claim=JwtClaim(claim=claim, unverified=True)))
    for prefix in (b"Bearer ", b"bearer ", b""):
        assert take(source, authorization=prefix + jwt(payload)) == Taken(value)
    named = source_of(Unit(jwt_claim=JwtClaim(claim=claim, unverified=True, header="x-token")))
    assert take(named, x_token=jwt(payload), authorization=b"") == Taken(value)


@pytest.mark.parametrize(
    "token",
    [b"", b"Bearer ", b"a.b", b"a.b.c.d", b"..", b"a.!.c", b"a.e30.c", b"a.W10.c", b"a.bnVsbA.c",
     b"Basic dTpw", b"\xff.\xff.\xff", b"a." + b"e" * 20_000 + b".c",
     b"a." + base64.urlsafe_b64encode(b"[" * 9_000) + b".c",
     b"a." + base64.urlsafe_b64encode(b'{"sub": ' + b"1" * 6_000 + b"}") + b".c"],
)  # fmt: skip
def test_unverified_claim_is_no_unit_when_the_token_cannot_be_read(token: bytes) -> None:
    source = source_of(Unit(jwt_claim=JwtClaim(claim="sub", unverified=True)))
    assert take(source, authorization=token).value == b""


def test_every_source_says_what_it_is() -> None:
    units = [
        Unit(header="x-a"), Unit(cookie="c"), Unit(random=True), Unit(query_parameter="q"),
        Unit(session=Session()), Unit(jwt_claim=JwtClaim(claim="sub", payload_in_metadata="p")),
        Unit(jwt_claim=JwtClaim(claim="sub", unverified=True)),
    ]  # fmt: skip
    texts = [source_of(unit).describe() for unit in units]
    assert len(set(texts)) == len(units)
